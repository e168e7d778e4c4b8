"""Runs that train on all training images, and have nothing to choose by."""

import json
import math

import pandas as pd
import pytest
import torch

import data
import fedmerge
import plotting
from fedmerge.datasets import load_dataset
from fedmerge.errors import InputError
from fedmerge.reporting.runs import load_runs
from fedmerge.reporting.scores import accuracies
from fedmerge.tuning import grid
from fedmerge.tuning.study import Study

FEW = {"dataset": "DIGITS", "model_name": "small", "n_epochs": 3, "local_steps": 2, "eval_every": 2, "quiet": True}

pytestmark = pytest.mark.usefixtures("small_networks")


def test_all_training_images_are_for_training():
    whole = load_dataset("DIGITS", "data", 0, validation=False)
    parts = load_dataset("DIGITS", "data", 0)
    assert (len(whole.train), len(whole.val)) == (len(parts.train) + len(parts.val), 0)
    n = len(parts.val)
    assert torch.equal(whole.train.images[n:], parts.train.images)  # the same draw, of which the first are kept
    assert torch.equal(whole.train.images[:n], parts.val.images)
    assert torch.equal(whole.test.images, parts.test.images)


@pytest.mark.slow
@pytest.mark.figures
def test_a_run_has_test_figures_alone_and_is_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = fedmerge.run(**FEW, validation=False, out="there")
    assert run.name.startswith("fedavg_DIGITS_iid_0_validation=False")
    history = run.history
    assert history[["val_accs", "val_losses"]].isna().all(axis=None)
    assert history.test_accs.notna().tolist() == [False, True, True]
    final = run.record["final"]
    assert final["accuracy"] == history.test_accs.iloc[-1]
    assert {name for name, figure in final.items() if figure is None} == {
        *("accuracy_best_val", "best_val_round", "val_accuracy", "val_accuracy_last10", "val_accuracy_best")
    }
    assert run.record["data"]["samples"]["val"] == 0
    assert math.isnan(pd.read_csv("there/results.csv").val_accuracy_best.iloc[0])
    (read,), foreign = load_runs("there/metrics")
    assert foreign == {}
    assert read.scores["accuracy"] == final["accuracy"]
    other = fedmerge.run(**FEW, out="there")  # in one table with a run that has a validation set
    assert other.record["final"]["val_accuracy"] is not None
    assert plotting.program(["--out", "there"]) == 0
    (row,) = [
        line for line in (tmp_path / "there/final_plots/DIGITS_summary.md").read_text().splitlines() if "=False" in line
    ]
    assert "nan" not in row
    assert "reference: FedAvg;" not in capsys.readouterr().err


@pytest.mark.slow
def test_it_goes_on_where_it_was(tmp_path, experiment):
    from fedalg import run_rounds
    from fedmerge.checkpoint.store import Checkpoints
    from fedmerge.simulation.run_state import RunState, resume

    made = [experiment(**FEW | {"eval_every": 1}, validation=False) for _ in range(2)]
    kept = Checkpoints(tmp_path, "run")
    made[0].settings.n_epochs = 2
    run_rounds(made[0])
    made[0].settings.n_epochs = 3
    kept.save(RunState(made[0]).state_dict())
    resume(made[1], kept)
    for run in made:
        run_rounds(run)
    assert torch.equal(made[0].server.theta, made[1].server.theta)


def test_without_validation_there_is_nothing_to_choose_by():
    rows = [{"epoch": 1, "test_accs": 0.5}, {"epoch": 2, "test_accs": 0.75, "val_accs": math.nan}]
    assert accuracies(rows) == {
        **{"accuracy": 0.75, "accuracy_last10": 0.625, "accuracy_best_val": None, "best_val_round": None},
        **{"val_accuracy": None, "val_accuracy_last10": None, "val_accuracy_best": None},
    }
    with pytest.raises(InputError, match="lr=1: --no-validation leaves nothing to choose by"):
        Study([grid.template(["--dataset", "DIGITS", "--no-validation"], "here", ["lr=1,2"])], [0], "out")


def test_a_split_of_all_images_is_made_by_hand(tmp_path, experiment):
    file = tmp_path / "halves.json"
    n = len(load_dataset("DIGITS", ".", 0, validation=False).train)
    file.write_text(json.dumps({"clients": [list(range(n // 2)), list(range(n // 2, n))]}))
    settings = {"partition_file": str(file), "n_clients": 2, "validation": False}
    with pytest.raises(
        InputError, match=r"'python data.py --stamp \S+ --dataset DIGITS --seed 0 --no-validation' checks"
    ):
        experiment(**settings)
    data.main(["--stamp", str(file), "--dataset", "DIGITS", "--no-validation"])
    assert sum(map(len, experiment(**settings).clients.parts)) == n
    with pytest.raises(InputError, match=r"halves.json: was made for other training data .*no-validation"):
        experiment(**settings | {"validation": True})
