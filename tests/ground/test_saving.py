"""Files that are written whole or not at all, and where nothing else is written over."""

import json
import os

import pytest

from fedmerge import locks, saving
from fedmerge.errors import InputError
from fedmerge.reporting import metrics_csv, results_csv


def test_write_atomic_keeps_the_old_file_when_it_fails(tmp_path):
    file = tmp_path / "x.json"
    saving.write_json(file, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        saving.write_json(file, {"a": float("nan")})
    with pytest.raises(AttributeError):
        saving.write_atomic(file, 3)
    assert json.loads(file.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["x.json"]


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
