"""What a run was made with, and whether one that is finished is still the same work."""

import json
import shutil

import pytest
import torch
from conftest import QUICK, ROOT

import provenance
import results
import utils


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the program's source in which a test may change things; the hash is of that."""
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(provenance, "HERE", tmp_path)
    provenance.code_hash.cache_clear()
    yield tmp_path
    provenance.code_hash.cache_clear()


def hash_after(path, before, after):
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    provenance.code_hash.cache_clear()
    return provenance.code_hash()


def test_the_hash_is_of_what_computes_and_not_of_words_or_figures(copy):
    first = provenance.code_hash()
    assert hash_after(copy / "agg_utils.py", "# [n_trainable], m in the paper", "#  something else") == first
    assert hash_after(copy / "agg_utils.py", "half may lie", "half may cheat") == first
    assert hash_after(copy / "plotting.py", "mean", "median") == first
    assert hash_after(copy / "codes.py", " + 1", " + 2") != first  # imported by what fedalg imports


def test_every_module_that_fedalg_loads_has_a_part_in_it(copy):
    for name in ("local_training", "payload", "downlink", "partitions", "models", "data", "options"):
        before = provenance.code_hash()
        with (copy / f"{name}.py").open("a") as file:
            file.write("\nA_NEW_NAME = 1\n")
        provenance.code_hash.cache_clear()
        assert provenance.code_hash() != before, name


@pytest.fixture
def finished(tmp_path, program):
    """A function -> (finished process of the same command again, path of its record)."""
    flags = [word for name, value in QUICK.items() for word in (f"--{name}", value)]

    def run(*more):
        done = program(*flags, *more)
        (record,) = (tmp_path / "metrics").glob("*.json")
        return done, record

    return run


def change(path, **parts):
    record = json.loads(path.read_text())
    for part, values in parts.items():
        record[part].update(values)
    path.write_text(json.dumps(record))


def test_a_finished_run_says_what_else_it_was_made_with(finished, tmp_path):
    _, path = finished()
    again, _ = finished()
    assert (again.returncode, again.stderr) == (0, "")
    change(path, environment={"code": "0", "commit": "0123456789abcdef", "torch": "2.0.0", "pandas": "1.0"})
    again, _ = finished()
    assert again.returncode == 0
    assert "already finished" in again.stdout
    warnings = again.stderr.splitlines()
    assert len(warnings) == 2
    assert "by other code (commit 01234567); --overwrite runs it again" in warnings[0]
    assert f"by torch 2.0.0, not {torch.__version__}" in warnings[1]


def test_a_run_finished_on_other_data_is_refused(finished):
    _, path = finished()
    change(path, data={"crc32": "00000000"})
    again, _ = finished()
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
    assert "was run on other files of DIGITS than ./data holds now" in again.stderr
    assert finished("--overwrite")[0].returncode == 0
    assert finished()[0].returncode == 0


def test_a_finished_run_whose_data_is_gone_says_that_it_cannot_be_told(tmp_path, capsys, monkeypatch):
    args = utils.resolve({**QUICK, "metrics_dir": str(tmp_path)})
    name = utils.run_name(args)
    record = {"finished": True, "settings": utils.settings_of(args), "partition": {"sha256": ""}}
    record |= {"payload_version": results.payload.VERSION, "data": {"crc32": "1"}, "environment": {}}
    (tmp_path / f"{name}.json").write_text(json.dumps(record))
    (tmp_path / f"{name}_metrics.csv").touch()

    def gone(*what):
        raise utils.InputError("no DIGITS in ./data")

    monkeypatch.setattr(results.data, "fingerprint", gone)
    assert results.already_finished(args, name)
    assert "on the same data cannot be told: no DIGITS in ./data" in capsys.readouterr().err


def test_what_an_old_record_does_not_tell_is_no_difference():
    assert provenance.differences({}) == []
    assert provenance.differences({"commit": "abc", "python": "2.7"}) == []
