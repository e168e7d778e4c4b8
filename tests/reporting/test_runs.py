"""Records and CSVs are read, or refused one by one; nothing odd in them gets further."""

import json
import math
import os
import random
import re

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_runs import change, compared, write_run

from fedmerge import locks
from fedmerge.reporting import curves, runs, scores


def test_accuracies_in_single_figures_by_hand():
    validated = [0.1, 0.9, 0.3, 0.9, *[0.5] * 8, 0.7]
    rows = [{"epoch": i + 1, "val_accs": v, "test_accs": v / 2} for i, v in enumerate(validated)]
    found = scores.accuracies(rows)
    assert (found["val_accuracy"], found["accuracy"]) == (0.7, 0.35)
    assert found["val_accuracy_last10"] == pytest.approx((0.9 + 8 * 0.5 + 0.7) / 10)  # rounds 4 to 13
    assert found["accuracy_last10"] == pytest.approx(found["val_accuracy_last10"] / 2)
    assert (found["val_accuracy_best"], found["best_val_round"], found["accuracy_best_val"]) == (0.9, 2, 0.45)
    rare = [row for row in rows if row["epoch"] in (1, 13)]  # as with --eval_every
    assert scores.accuracies(rare)["val_accuracy_last10"] == 0.7


def test_a_run_is_read(tmp_path):
    name = write_run(tmp_path, [0.2, 0.6], seed=3, dirichlet=0.5)
    (run,), foreign = runs.load_runs(tmp_path)
    assert foreign == {}
    assert (run.path.stem, run.state, run.settings["seed"], run.dense_bytes) == (name, "finished", 3, 3_000_000)
    assert (run.level.cell, run.level.title, run.level.file) == ("0.5", "Dirichlet(0.5)", "0.5")
    assert (run.code, run.commit, run.data, run.f1) == (None, "0123456", "0bbb6c38", 0.3)
    assert run.scores["val_accuracy"] == 0.6
    assert "metrics_dir" not in run.settings


def test_an_old_record_counts_the_first_contact_and_names_no_split(tmp_path):
    name = write_run(tmp_path, [0.2])
    record = json.loads((tmp_path / f"{name}.json").read_text())
    for gone in ("shared_init", "shift"):
        del record["settings"][gone]
    for gone in ("data", "failed"):
        del record[gone]
    (tmp_path / f"{name}.json").write_text(json.dumps(record))
    (run,), _ = runs.load_runs(tmp_path)
    assert run.settings["shared_init"] is False
    assert run.level == runs.Level("label", False, "iid", "iid")
    assert run.data is None


def test_a_split_made_by_hand_is_a_level_of_its_own(tmp_path):
    for seed in (0, 1):
        name = write_run(tmp_path, [0.2], seed=seed)
        split = {"dirichlet": None, "partition_file": f"patho_{seed}.json"}
        change(tmp_path, name, settings=split, partition={"name": "patho"})
    write_run(tmp_path, [0.2], seed=2, record={"partition": {"name": "iid"}})
    found, _ = runs.load_runs(tmp_path)
    assert [run.level.title for run in found] == ["split: patho", "split: patho", "IID"]
    assert [run.level.file for run in found] == ["split-patho", "split-patho", "iid"]
    assert all("partition_file" not in run.settings for run in found)
    assert found[0].level.order > found[2].level.order


@pytest.mark.parametrize(
    ("failed", "state"),
    [(None, "stopped"), ("round 3, client 2: the loss is not finite", "diverged"), ("disk full", "failed")],
)
def test_how_a_run_ended_that_did_not_finish(tmp_path, failed, state):
    name = write_run(tmp_path, [0.2, 0.3], n_epochs=9)
    change(tmp_path, name, finished=False, failed=failed)
    (run,), _ = runs.load_runs(tmp_path)
    assert (run.state, len(run.rounds)) == (state, 2)
    assert math.isnan(run.f1)
    with locks.exclusively(tmp_path / f".{name}.lock"):
        assert runs.load_runs(tmp_path)[0][0].state == ("running" if failed is None else state)
    (tmp_path / f"{name}_metrics.csv").unlink()
    (run,), _ = runs.load_runs(tmp_path)
    assert (len(run.rounds), run.scores) == (0, {})


WRONG = {
    "finished": "yes",
    "failed": 3,
    "final": {"f1": "much"},
    "model": {"weights": 1.5},
    "environment": 7,
    "data": {"crc32": ["x"]},
    "partition": {"name": "a\x1b[2Jb"},
}
WRONG_SETTINGS = {
    "n_epochs": "x",
    "seed": None,
    "dirichlet": "weird",
    "dataset": "elsewhere/authorized_keys",
    "algorithm": "\\input{/etc/passwd}",
    "shared_init": "no",
    "lr": [0.1],
    "momentum": "\x1b[31m",
    "shift": 1,
    "preset": 2.5,
}


@pytest.mark.parametrize(
    "changes",
    [*({name: value} for name, value in WRONG.items()), *({"settings": {k: v}} for k, v in WRONG_SETTINGS.items())],
    ids=str,
)
def test_a_wrong_value_stops_only_its_own_run(tmp_path, changes):
    write_run(tmp_path, [0.2], seed=1)
    name = write_run(tmp_path, [0.2], seed=2)
    change(tmp_path, name, **changes)
    found, foreign = runs.load_runs(tmp_path)
    assert [run.settings["seed"] for run in found] == [1]
    assert list(foreign) == [tmp_path / f"{name}.json"]
    assert foreign[tmp_path / f"{name}.json"].isprintable()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.3", "many"),
        ("0.3", "1.5"),
        ("0.3", "inf"),
        ("4000000.0", "-1"),
        ("4000000.0", "9" * 400),
        ("epoch", "round"),
    ],
)
def test_an_impossible_csv_stops_only_its_own_run(tmp_path, old, new):
    write_run(tmp_path, [0.2], seed=1)
    csv = tmp_path / f"{write_run(tmp_path, [0.2, 0.3], seed=2)}_metrics.csv"
    csv.write_text(csv.read_text().replace(old, new, 1))
    found, foreign = runs.load_runs(tmp_path)
    assert [run.settings["seed"] for run in found] == [1]
    assert csv.name in next(iter(foreign.values()))


def test_a_csv_of_fewer_rounds_than_the_run_is_not_a_finished_runs(tmp_path):
    write_run(tmp_path, [0.2, 0.3], n_epochs=3)
    found, foreign = runs.load_runs(tmp_path)
    assert found == []
    assert "2 of the 3 rounds" in next(iter(foreign.values()))


def test_what_is_no_regular_file_or_too_large_is_not_read(tmp_path, monkeypatch):
    write_run(tmp_path, [0.2])
    os.mkfifo(tmp_path / "fifo.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    (tmp_path / "folder.json").mkdir()
    with open(tmp_path / "giant.json", "wb") as file:
        file.truncate(2**40)
    found, foreign = runs.load_runs(tmp_path)
    assert len(found) == 1
    assert {path.name for path in foreign} == {"fifo.json", "zero.json", "folder.json", "giant.json"}


ODD = [
    math.nan,
    math.inf,
    1e308,
    -1,
    None,
    "x",
    [],
    {},
    True,
    0,
    1e-320,
    "=cmd()",
    "../../x",
    "$\\frac$",
    "a|b\n",
    2**70,
]


def _places(value, path=()):
    """All paths to what is in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in items for place in _places(inner, (*path, key)))]


@pytest.mark.slow
@given(st.integers(0, 10**6), st.sampled_from(ODD), st.booleans())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_in_a_record_or_a_csv_is_refused_or_drawn(tmp_path_factory, spot, odd, in_csv):
    folder = tmp_path_factory.mktemp("m")
    write_run(folder, [0.2, 0.3], seed=1)
    name = write_run(folder, [0.2, 0.4], seed=2)
    path = folder / f"{name}.json"
    if in_csv:
        path = folder / f"{name}_metrics.csv"
        cells = [match.span() for match in re.finditer(r"[^,\n]+", path.read_text())]
        begin, end = cells[spot % len(cells)]
        path.write_text(path.read_text()[:begin] + str(odd) + path.read_text()[end:])
    else:
        record = json.loads(path.read_text())
        places = _places(record)[1:]
        *way, last = places[spot % len(places)]
        holder = record
        for key in way:
            holder = holder[key]
        holder[last] = odd
        path.write_text(json.dumps(record))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(curves, "draw_train_val", lambda *_: None)  # both take long
        patched.setattr(curves, "save", lambda figure, *_: curves.plt.close(figure))
        found, _ = runs.load_runs(folder)
        for dataset in {run.settings["dataset"] for run in found if run.state == "finished"}:
            compared(folder, folder / "out", "--mix", "--panels", "both", dataset=dataset)


@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_are_refused_or_read(tmp_path, seed):
    name, rng = write_run(tmp_path, [0.2, 0.3]), random.Random(seed)
    for path in (tmp_path / f"{name}.json", tmp_path / f"{name}_metrics.csv"):
        whole = path.read_bytes()
        for _ in range(40):
            damaged = bytearray(whole[: rng.randrange(len(whole))] if rng.random() < 0.3 else whole)
            for _ in range(min(len(damaged), rng.randrange(1, 5))):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            path.write_bytes(bytes(damaged))
            found, foreign = runs.load_runs(tmp_path)
            assert len(found) + len(foreign) == 1
        path.write_bytes(whole)
    assert isinstance(runs.load_runs(tmp_path)[0][0].rounds, pd.DataFrame)
