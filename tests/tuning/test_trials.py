"""tune.py --trials: Optuna's search, and what it leaves."""

import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import ROOT
from processes import finished

from fedmerge.checkpoint.policy import Interrupted
from fedmerge.errors import InputError
from fedmerge.tuning import grid, trials
from fedmerge.tuning.choice import Choice, Point
from fedmerge.tuning.study import Study

pytest.importorskip("optuna", reason="no Optuna: pip install 'optuna>=5,<6'")
TINY = ["--model_name", "small", "--plugin", str(ROOT / "tests" / "small_networks.py"), "--dataset", "DIGITS"]
TINY += ["--n_epochs", "3", "--local_steps", "2", "--n_clients", "4", "--participation", "1"]
RANGES = ["--range", "lr=0.001..0.5", "local_steps=1..3", "--grid", "local=sgd,sam"]


@pytest.fixture
def search(program):
    """A function of the number of trials, flags of tune.py and flags of runs -> finished process."""
    few = [word for word in TINY if word not in ("--local_steps", "2")]
    return lambda n, *flags, of=few: program("--trials", n, *RANGES, *flags, "--", *of, script="tune.py")


def told(tmp_path, folder="tuning"):
    (choice,) = json.loads((tmp_path / folder / "choice.json").read_text())["choices"]
    return choice


@pytest.mark.slow
def test_the_best_trial_is_chosen_and_more_trials_go_on(search, tmp_path):
    done = search(2, "--seeds", "5", "6")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trial ") == 2
    choice = told(tmp_path)
    assert len(choice["points"]) == 2
    assert set(choice["points"][0]["by_seed"]) == {"5", "6"}
    for point in choice["points"]:
        assert 0.001 <= float(point["values"]["lr"]) <= 0.5
        assert point["values"]["local_steps"] in ("1", "2", "3")
        assert point["values"]["local"] in ("sgd", "sam")
    best = max(choice["points"], key=lambda point: point["mean"])
    assert choice["chosen"] == best["values"]
    chosen = (tmp_path / "tuning" / "chosen.txt").read_text()
    assert f"--lr {best['values']['lr']} " in chosen
    assert len(list((tmp_path / "tuning" / "metrics").glob("*.json"))) == 4
    done = search(3, "--seeds", "5", "6")
    assert done.stdout.count("trial ") == 1
    assert search(3, "--seeds", "5", "6").stdout.count("trial ") == 0
    other = search(3, "--seeds", "5")
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert "trials.db: holds trials of other flags, ranges or seeds: another --out" in other.stderr


@pytest.mark.slow
def test_processes_share_the_trials(spawn, tmp_path):
    few = [word for word in TINY if word not in ("--local_steps", "2")]
    words = [str(ROOT / "tune.py"), "--trials", "4", *RANGES, "--seeds", "1", "--", *few]
    assert finished(spawn, [*words[:2], "1", *words[3:]], tmp_path).returncode == 0  # makes the file
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: finished(spawn, words, tmp_path), range(2)))
    assert [done.returncode for done in both] == [0, 0], both[0].stderr
    with sqlite3.connect(tmp_path / "tuning" / "trials.db") as opened:
        ((n,),) = opened.execute("SELECT COUNT(*) FROM trials WHERE state IN ('COMPLETE', 'PRUNED')").fetchall()
    assert n in (4, 5)  # both may begin the last one at once


@pytest.mark.slow
def test_who_diverges_counts_as_nothing_and_is_not_chosen(program, tmp_path):
    flags = ["--trials", "3", "--grid", "lr=1e30,1e29,0.05", "--seeds", "0", "--", *TINY]
    done = program(*flags, script="tune.py")
    points = told(tmp_path)["points"]
    assert all(("not finite" in p["failed"].get("0", "")) == (p["values"]["lr"] != "0.05") for p in points)
    assert done.returncode == (0 if any(p["values"]["lr"] == "0.05" for p in points) else 1), done.stderr


def test_a_trial_behind_the_median_is_ended_early():
    class Trial:
        reports = []

        def report(self, value, step):
            self.reports.append((value, step))

        def should_prune(self):
            return len(self.reports) == 2

    assert issubclass(trials.Pruned, Exception)
    trial = Trial()
    heard = trials.listener(trial, n_rounds=9)
    heard({"val_accs": float("nan"), "epoch": 1})
    heard({"val_accs": 0.5, "epoch": 2})
    with pytest.raises(trials.Pruned, match="after round 4"):
        heard({"val_accs": 0.25, "epoch": 4})
    assert trial.reports == [(0.5, 2), (0.25, 4)]
    trial.reports = [None]
    trials.listener(trial, n_rounds=4)({"val_accs": 0.25, "epoch": 4})  # the last round: it is done
    trials.listener(None, n_rounds=9)({"val_accs": 0.25, "epoch": 4})


def test_ranges_by_hand():
    lr = grid.range_of("lr=0.001..0.3")
    assert (lr.low, lr.high, lr.whole, lr.log) == (0.001, 0.3, False, True)
    assert grid.range_of("--rounds=5..20") == grid.Range("rounds", ("5", "20"), 5, 20, True, False)
    assert not grid.range_of("momentum=0..0.9").log
    for text, said in (
        ("lr=0.1", "is not as lr=0.001..0.3"),
        ("lr=0.3..0.1", "are not two numbers, the smaller first"),
        ("lr=0..1", "'0' is not a positive number"),
        ("local=a..b", "there is no flag --local that takes numbers"),
        ("nosuch=1..2", "there is no flag --nosuch"),
        ("dirichlet=iid..1", "are not two numbers"),
    ):
        with pytest.raises(InputError, match=said):
            grid.range_of(text)


@pytest.mark.parametrize(
    ("value", "end"),
    [("0.29", [("lr", "0.29", "largest")]), ("0.1", []), ("0.0011", [("lr", "0.0011", "smallest")])],
)
def test_a_best_near_an_end_of_its_range_is_said(value, end):
    assert Choice([Point({"lr": value}, [], {0: 0.5})], [grid.range_of("lr=0.001..0.3")]).at_end == end


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--range", "lr=0.1..1", "--", "--dataset", "DIGITS"], "--range is for --trials"),
        (["--trials", "2", "--jobs", "2", "--range", "lr=0.1..1", "--", *TINY], "--trials goes without"),
        (["--trials", "2", "--", *TINY], "no values to try"),
        (["--trials", "2", "--range", "lr=0.1..1", "--grid", "lr=1,2", "--", *TINY], "lr is tried twice"),
        (["--trials", "2", "--range", "prox_mu=0.1..1", "--", *TINY], "has no effect without"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line(program, tmp_path, flags, said):
    done = program(*flags, script="tune.py")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert said in done.stderr
    assert not list(tmp_path.iterdir())


def test_without_optuna_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(InputError, match="--trials needs Optuna: pip install"):
        trials.check_installed()


def test_a_trial_that_is_interrupted_is_tried_again(tmp_path, monkeypatch):
    tried = []

    def train(args, **_):
        tried.append((args.lr, args.local))
        raise Interrupted("stopped by SIGTERM")

    for _ in range(3):
        template = grid.template(["--dataset", "DIGITS"], "here", ["local=sgd,sam"], ["lr=0.001..0.3"])
        with pytest.raises(Interrupted):
            trials.Search(Study([template], [0], tmp_path), 1, train).run()
    assert len(tried) == 3
    assert len(set(tried)) == 1
