"""tune.py as it is used."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from conftest import ROOT

TINY = ["--model_name", "small", "--plugin", str(ROOT / "tests" / "small_networks.py"), "--dataset", "DIGITS"]
TINY += ["--n_epochs", "2", "--local_steps", "3", "--quiet"]


@pytest.fixture
def tune(program):
    """A function of flags -> finished process of tune.py; whatever it starts is as a user starts it."""
    return lambda *flags: program(*flags, script="tune.py", fresh=True)


def lines(path):
    return path.read_text().splitlines()


@pytest.mark.slow
def test_the_best_on_validation_data_is_chosen_whatever_the_test_says(tune, tmp_path, monkeypatch):
    for name, value in {"EXTRA": "--out elsewhere", "ENVIRONMENT": "BATCH", "SLURM_JOB_ID": "5"}.items():
        monkeypatch.setenv(name, value)  # flags of other runs; a batch job, whose script run_experiments.sh is not
    flags = ["--grid", "lr=1e-9,0.1", "--seeds", "3", "--out", "tried", "--jobs", "2", "--", *TINY]
    done = tune(*flags)
    assert done.returncode == 0, done.stderr
    tried = tmp_path / "tried"
    assert [len(lines(path)) for path in tried.glob("runs_*.txt")] == [2]
    assert lines(tried / "chosen.txt")[0].endswith("--quiet --lr 0.1")
    assert "lr=0.1 is the largest that was tried" in done.stdout
    assert not list(tmp_path.glob("*.csv"))  # all of it is in its folder
    report = (tried / "choice.md").read_text()
    for path in (tried / "metrics").glob("*.json"):  # what the test says has no part in it
        record = json.loads(path.read_text())
        record["final"] |= {name: -x for name, x in record["final"].items() if name.startswith("accuracy")}
        path.write_text(json.dumps(record))
    assert tune("--choose", *flags).returncode == 0
    assert (tried / "choice.md").read_text() == report


@pytest.mark.slow
def test_a_list_is_chosen_for_line_by_line_and_who_diverges_is_out(tune, program, tmp_path):
    path = tmp_path / "list.txt"
    common = " ".join(TINY)
    path.write_text(f"{common} {{lr: 1e30 | 0.1}}\n{common} --algorithm fedprox {{lr: 1e30 | 1e29}}\n")
    flags = ["--list", path, "--out", "tried"]
    assert tune(*flags, "--dry_run").returncode == 0
    (runs,) = (tmp_path / "tried").glob("runs_*.txt")
    said = tune(*flags, "--choose")
    assert said.returncode == 2
    assert "4 of 4 runs are not finished" in said.stderr
    for line in lines(runs):
        program("--metrics_dir", tmp_path / "tried" / "metrics", *shlex.split(line))
    assert tune(*flags, "--choose").returncode == 1  # of the second, nothing
    (chosen,) = lines(tmp_path / "tried" / "chosen.txt")
    assert chosen.endswith("--lr 0.1")
    told = json.loads((tmp_path / "tried" / "choice.json").read_text())
    assert [one["chosen"] for one in told["choices"]] == [{"lr": "0.1"}, None]
    assert "not finite" in told["choices"][0]["points"][1]["failed"]["0"]


@pytest.mark.slow
def test_a_signal_stops_it_and_the_same_command_goes_on(tune, tmp_path):
    flags = ["--grid", "lr=0.05,0.1", "--", *TINY[:-5], "--n_epochs", "4000", "--local_steps", "1", "--quiet"]
    running = subprocess.Popen(
        [sys.executable, ROOT / "tune.py", *flags],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
    )
    while not list(tmp_path.glob("tuning/metrics/*.csv")):
        assert running.poll() is None
        time.sleep(0.05)
    os.kill(running.pid, signal.SIGINT)
    said = running.communicate()[1]
    assert running.returncode == 75, said
    assert said.endswith("tune.py: stopped: the same command goes on\n")
    choose = tune("--choose", *flags)
    assert choose.returncode == 2
    assert "2 of 2 runs are not finished, such as fedavg_DIGITS_iid_0_" in choose.stderr


def listed(folder, *flags):
    """Return what tune.py prints that only writes its list, there."""
    words = [sys.executable, ROOT / "tune.py", *flags, "--dry_run", "--", "--dataset", "DIGITS"]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_every_point_is_run_with_every_seed(tmp_path):
    said = listed(tmp_path, "--grid", "lr=1,2", "--seeds", "8", "9")
    (path,) = (tmp_path / "tuning").iterdir()
    assert said == f"4 runs: tuning/{path.name}\n"
    assert lines(path) == [f"--dataset DIGITS --lr {lr} --seed {seed} --out tuning" for lr in (1, 2) for seed in (8, 9)]


def test_a_changed_grid_is_another_list_and_nobodys_is_overwritten(tmp_path):
    """Lines that wait in SLURM's queue are known by their numbers in the list that was there."""
    (tmp_path / "experiments.txt").write_text("mine")
    said = [listed(tmp_path, "--out", ".", "--grid", f"lr={values}") for values in ("1,2", "0.5,1,2", "1,2")]
    assert said[0] == said[2] != said[1]
    assert (tmp_path / "experiments.txt").read_text() == "mine"
    assert sorted(len(lines(path)) for path in tmp_path.glob("runs_*.txt")) == [2, 3]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--grid", "lr=x", "--"], "no flags of fedalg.py behind --"),
        (["--grid", "lr=0.1,x", "--", "--dataset", "DIGITS"], "the command line: lr=x: argument --lr: 'x' is not"),
        (["--grid", "lr=1,1.0", "--", "--dataset", "DIGITS"], "lr=1.0: is the same run as the command line: lr=1"),
        (["--grid", "prox_momentum=1,2", "--", "--dataset", "DIGITS"], "--prox_momentum has no effect without"),
        (["--seeds", "1", "1", "--grid", "lr=1,2", "--", "--dataset", "DIGITS"], "a seed is there twice"),
        (["--grid", "lr=1,2", "--", "--save_weights", "w.pt"], "--save_weights is of one run"),
        (["--list", "nowhere.txt"], "nowhere.txt: there is no such file"),
        (["--list", "empty.txt"], "there are no lines of flags in the list"),
        (["--list", "empty.txt", "--grid", "lr=1,2"], "leave out --grid"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line_before_anything_is_written(tmp_path, flags, said):
    (tmp_path / "empty.txt").touch()
    done = subprocess.run([sys.executable, ROOT / "tune.py", *flags], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("tune.py: error: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["empty.txt"]
