"""Files that survive failures, other processes and other people's content."""

import csv
import json
import multiprocessing
import os

import pytest

import records
import utils


def test_write_atomic_keeps_the_old_file_when_it_fails(tmp_path):
    file = tmp_path / "x.json"
    records.write_json(file, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        records.write_json(file, {"a": float("nan")})
    with pytest.raises(AttributeError):
        records.write_atomic(file, 3)
    assert json.loads(file.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["x.json"]


def finish(path, i):
    for j in range(5):
        records.add_result(path, {"method": "x", "accuracy": i, "run": f"run{i}-{j}"})


def test_results_of_processes_that_finish_at_once_are_all_there(tmp_path):
    path = tmp_path / "results.csv"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=finish, args=(path, i)) for i in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["run"] for row in rows) == sorted(f"run{i}-{j}" for i in range(6) for j in range(5))


@pytest.mark.parametrize(
    "content",
    [b"my precious notes\n", b"run,a\n1,2,3\n", "run\n\u00e9\n".encode("latin-1"), b'run\n"\n' + b"x" * 200_000],
)
def test_a_file_that_is_no_csv_of_results_is_left_alone(tmp_path, content):
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    with pytest.raises(utils.InputError, match=r"results\.csv"):
        records.add_result(path, {"run": "x"})
    assert path.read_bytes() == content


def test_every_row_of_the_metrics_is_on_disk_when_it_is_written(tmp_path):
    with records.metrics_csv(tmp_path / "m.csv", ["epoch", "loss"]) as write:
        write({"epoch": 1})
        assert (tmp_path / "m.csv").read_text().split() == ["epoch,loss", "1,"]


def test_write_atomic_follows_a_symbolic_link(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    records.write_atomic(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_result_replaces_that_of_the_same_run_and_keeps_foreign_columns(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("method,run,mine\na,one,note\nb,two,\n")
    records.add_result(path, {"method": "c", "accuracy": 0.5, "run": "two"})
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"method": "a", "accuracy": "", "run": "one", "mine": "note"},
        {"method": "c", "accuracy": "0.5", "run": "two", "mine": ""},
    ]
