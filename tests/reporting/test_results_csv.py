"""The CSV of all runs: whoever writes at the same time, no row is lost. Its processes begin without torch."""

import csv
import multiprocessing
import os
import random
import time

import pytest

from fedmerge.config.resolve import resolve
from fedmerge.config.run_name import settings_of
from fedmerge.errors import InputError
from fedmerge.reporting import results_csv


def finish(path, i):
    for j in range(5):
        results_csv.add_results(path, [{"method": "x", "accuracy": i, "run": f"run{i}-{j}"}])


@pytest.mark.slow
def test_results_of_sixteen_processes_that_finish_at_once_are_all_there_though_some_are_killed(tmp_path):
    path, moments = tmp_path / "results.csv", random.Random(0)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fedmerge.reporting.results_csv", "filelock"])
    processes = {i: context.Process(target=finish, args=(path, i)) for i in range(16)}
    for process in processes.values():
        process.start()
    while not path.exists():
        time.sleep(0.001)
    killed = 0
    for i in reversed(range(16)):  # the last to start are the last to end
        time.sleep(moments.uniform(0, 0.004))
        processes[i].kill()
        processes[i].join()
        killed += processes[i].exitcode < 0
        processes[i] = context.Process(target=finish, args=(path, i))  # as a job that is put back into the queue
        processes[i].start()
    assert killed
    for process in processes.values():
        process.join()
        assert process.exitcode == 0
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["run"] for row in rows) == sorted(f"run{i}-{j}" for i in range(16) for j in range(5))
    assert all(row == {"method": "x", "accuracy": row["run"][3:-2], "run": row["run"]} for row in rows)
    assert sorted(os.listdir(tmp_path)) == ["results.csv", "results.csv.lock"]


@pytest.mark.parametrize(
    "content",
    [b"my precious notes\n", b"run,a\n1,2,3\n", "run\n\u00e9\n".encode("latin-1"), b'run\n"\n' + b"x" * 200_000],
)
def test_a_file_that_is_no_csv_of_results_is_left_alone(tmp_path, content):
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"results\.csv"):
        results_csv.add_results(path, [{"run": "x"}])
    assert path.read_bytes() == content


def test_a_result_replaces_that_of_the_same_run_and_keeps_foreign_columns(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("method,run,mine\na,one,note\nb,two,\n")
    results_csv.add_results(path, [{"method": "c", "accuracy": 0.5, "run": "two"}])
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"method": "a", "accuracy": "", "run": "one", "mine": "note"},
        {"method": "c", "accuracy": "0.5", "run": "two", "mine": ""},
    ]


def test_the_row_of_a_run_tells_validation_and_test_apart_and_every_setting_that_acts():
    args = resolve({"algorithm": "las", "lr": 0.05, "precision": "bf16", "dirichlet": 0.5, "seed": 3})
    final = {"accuracy": 0.9, "precision": 0.8, "val_accuracy": 0.7, "train_seconds": 1.0}
    record = {"run": "x", "settings": settings_of(args), "final": final, "partition": {"name": "0.5"}}
    row = results_csv.result_row(record)
    assert list(row)[:6] == ["method", "dataset", "Dirichlet", "rounds", "accuracy", "precision"]
    assert (row["precision"], row["settings.precision"], row["val_accuracy"]) == (0.8, "bf16", 0.7)
    assert (row["settings.lr"], row["settings.sparsity"], row["Dirichlet"]) == (0.05, 0.2, 0.5)
    assert not {"settings.seed", "settings.metrics_dir", "settings.down_bits", "settings.soup_epochs"} & set(row)
    del record["partition"]["name"]  # as older records are
    assert results_csv.result_row(record)["Dirichlet"] == 0.5
    by_hand = record | {"settings": record["settings"] | {"dirichlet": None}, "partition": {"name": "patho"}}
    assert results_csv.result_row(by_hand)["Dirichlet"] == "patho"


def test_results_are_rebuilt_from_the_runs(tmp_path, program):
    few = ("--n_epochs", "1", "--n_client_epochs", "1", "--quiet")
    for seed in ("0", "1"):
        assert program(*few, "--seed", seed).returncode == 0
    path, whole = tmp_path / "results.csv", (tmp_path / "results.csv").read_text()
    (tmp_path / "metrics" / "other.json").write_text('{"finished": true, "run": "other"}')
    (tmp_path / "metrics" / "torn.json").write_text("{")
    rebuild = ("--csv_dir", tmp_path / "metrics", "--rebuild_results", path)
    for damaged in (None, whole, whole.splitlines()[0] + "\n", whole[: whole.index("\n", 300)] + "\n"):
        path.unlink() if damaged is None else path.write_text(damaged)
        done = program(*rebuild, script="plotting.py")
        assert "2 finished runs" in done.stdout, done.stderr
        assert path.read_text() == whole
    path.write_text("notes of mine\n")
    done = program(*rebuild, script="plotting.py")
    assert done.returncode == 2
    assert path.read_text() == "notes of mine\n"


def test_a_number_that_is_none_of_json_leaves_its_record_out(tmp_path, capsys):
    (tmp_path / "a.json").write_text('{"run": "a", "finished": true, "final": {"f1": 1e999}}')
    assert results_csv.rebuild_results(tmp_path, tmp_path / "results.csv") == 0
    assert "a.json is not the record of a run (InputError('not JSON (1e999 is no" in capsys.readouterr().err
