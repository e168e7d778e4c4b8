"""Files that survive failures, other processes and other people's content."""

import csv
import json
import multiprocessing
import os
import random
import time

import pytest

from fedmerge import locks, saving
from fedmerge.config.resolve import resolve
from fedmerge.config.run_name import settings_of
from fedmerge.errors import InputError
from fedmerge.reporting import metrics_csv, results_csv, run_record


def test_write_atomic_keeps_the_old_file_when_it_fails(tmp_path):
    file = tmp_path / "x.json"
    saving.write_json(file, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        saving.write_json(file, {"a": float("nan")})
    with pytest.raises(AttributeError):
        saving.write_atomic(file, 3)
    assert json.loads(file.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["x.json"]


def finish(path, i):
    for j in range(5):
        results_csv.add_results(path, [{"method": "x", "accuracy": i, "run": f"run{i}-{j}"}])


def test_results_of_sixteen_processes_that_finish_at_once_are_all_there_though_some_are_killed(tmp_path):
    path, moments = tmp_path / "results.csv", random.Random(0)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["records", "filelock"])
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


def test_every_row_of_the_metrics_is_on_disk_when_it_is_written(tmp_path):
    with metrics_csv.MetricsCSV(tmp_path / "m.csv", ["epoch", "loss"], [{"epoch": 1, "loss": 0.5}]) as metrics:
        metrics.write({"epoch": 2})
        assert (tmp_path / "m.csv").read_text().split() == ["epoch,loss", "1,0.5", "2,"]
        (tmp_path / "m.csv").rename(tmp_path / "elsewhere")
        with pytest.raises(OSError, match="was removed while the run wrote to it"):
            metrics.write({"epoch": 3})


KINDS = {
    "link": lambda path: path.symlink_to(path.parent / "real"),
    "dangling link": lambda path: path.symlink_to(path.parent / "nothing"),
    "FIFO": os.mkfifo,
    "folder": os.mkdir,
}
WRITES = {
    "a file": lambda path: saving.write_atomic(path, "new"),
    "the earlier of two": lambda path: saving.replacing(path.with_name("other"), path).__enter__(),
    "metrics": lambda path: metrics_csv.MetricsCSV(path, ["epoch"]),
    "a lock": lambda path: locks.exclusively(path).__enter__(),
    "results": lambda path: results_csv.add_results(path, [{"run": "x"}]),
    "the lock of results": lambda path: results_csv.add_results(path.with_suffix(""), [{"run": "x"}]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", WRITES)
def test_links_and_devices_are_neither_followed_nor_replaced(tmp_path, kind, what):
    path = tmp_path / "x.csv.lock"
    (tmp_path / "real").write_text("run\n")
    KINDS[kind](path)
    before = os.lstat(path)
    with pytest.raises(InputError, match=r"x\.csv\.lock: is not a"):
        WRITES[what](path)
    assert os.path.samestat(os.lstat(path), before)
    assert (tmp_path / "real").read_text() == "run\n"
    assert sorted(os.listdir(tmp_path)) == ["real", "x.csv.lock"]


def test_a_link_where_the_new_file_is_made_is_not_followed(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / f".x.{os.getpid()}.tmp").symlink_to(tmp_path / "real")
    saving.write_atomic(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "new"
    assert (tmp_path / "real").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["real", "x"]


def test_metrics_that_became_a_link_are_not_followed(tmp_path):
    with metrics_csv.MetricsCSV(tmp_path / "m.csv", ["epoch"]) as metrics:
        (tmp_path / "m.csv").rename(tmp_path / "real")
        (tmp_path / "m.csv").symlink_to(tmp_path / "real")
        with pytest.raises(OSError, match="was removed while the run wrote to it"):
            metrics.write({"epoch": 1})


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


def test_why_a_run_failed_is_in_its_record(tmp_path):
    saving.write_json(tmp_path / "x.json", {"run": "x", "finished": False, "failed": None})
    run_record.note_failure(tmp_path / "x.json", FloatingPointError("round 3, client 2: the loss is not finite"))
    assert json.loads((tmp_path / "x.json").read_text())["failed"].startswith("round 3, client 2")
    run_record.note_failure(tmp_path / "y.json", OSError("full"))
    assert not (tmp_path / "y.json").exists()


def test_a_finished_run_does_not_say_that_it_failed(tmp_path):
    saving.write_json(tmp_path / "x.json", {"run": "x", "finished": True, "failed": None})
    run_record.note_failure(tmp_path / "x.json", FloatingPointError("--save_clients: client 3 diverges"))
    assert json.loads((tmp_path / "x.json").read_text())["failed"] is None
