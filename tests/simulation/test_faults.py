"""Clients that fail or diverge: updates that never arrive or are not finite, and runs that crash."""

import json

import pytest
import torch
from conftest import QUICK, train_round

import fedalg
from fedmerge.client_update import ClientResult
from fedmerge.config.resolve import resolve
from fedmerge.config.run_name import run_name
from fedmerge.simulation import server
from fedmerge.simulation.cohort import Cohort
from fedmerge.simulation.sampling import dropped, sample_clients


def trained(run, client_id):
    return run.clients.trainer.client(client_id, 1).train(run.server.theta).clone()


def test_who_drops_out_has_downloaded_and_the_rest_is_merged_as_if_alone(experiment):
    run, whole = experiment(dropout=0.5, participation=0.5, shared_init=False), experiment(participation=0.5)
    sampled = sample_clients(20, 0.5, 0, 1)
    lost = dropped(sampled, 0.5, 0, 1)
    assert 0 < len(lost) < 10
    row = train_round(run, 1)
    arrived = [number for number in sampled if number not in lost]
    assert row["clients"] == len(arrived)
    updates = torch.stack([trained(whole, number) - whole.server.theta for number in arrived])
    samples = torch.tensor([float(len(whole.clients.parts[number])) for number in arrived])
    assert torch.allclose(run.server.theta, whole.server.theta + samples / samples.sum() @ updates, atol=1e-6)
    for number in sampled:
        _, up, down = run.server.traffic[number]
        assert down > 0
        assert (up == 0) == (number in lost)


def test_who_drops_out_is_drawn_anew_each_round():
    losses = [len(dropped(range(100), 0.3, 0, round)) for round in range(50)]
    assert 0.27 < sum(losses) / 5000 < 0.33
    assert dropped(range(100), 0.3, 0, 1) != dropped(range(100), 0.3, 0, 2)


@pytest.mark.parametrize("extra", [(), ("--algorithm", "las", "--preset", "compact", "--wire", "real")])
def test_a_round_of_which_nothing_arrives_changes_nothing(program, tmp_path, extra):
    done = program(*extra, "--n_epochs", "4", "--n_client_epochs", "1", "--dropout", "0.95")
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "metrics").glob("*.csv")
    rows = [line.split(",") for line in path.read_text().splitlines()]
    clients, accuracy = rows[0].index("clients"), rows[0].index("test_accs")
    empty = [i for i, row in enumerate(rows) if row[clients] == "0"]
    assert empty
    assert all(rows[i][accuracy] == rows[i - 1][accuracy] for i in empty if i > 1)


def poison(run, client_id, monkeypatch):
    """Make what this client trains, or every client if it is None, not finite in the next rounds."""
    honest = run.server.algorithm.client_update

    def client_update(delta, start, client):
        if client_id is None or client.id == client_id:
            delta[7] = float("nan")
        return honest(delta, start, client)

    monkeypatch.setattr(run.server.algorithm, "client_update", client_update)


def test_a_client_that_turns_nan_is_named_before_it_is_merged(experiment, monkeypatch):
    run = experiment()
    client_id = sample_clients(20, 0.2, 0, 1)[2]
    poison(run, client_id, monkeypatch)
    before = run.server.theta.clone()
    with pytest.raises(FloatingPointError, match=f"round 1, client {client_id}: the update is not finite"):
        train_round(run, 1)
    assert torch.equal(run.server.theta, before)


def test_a_loss_that_is_not_finite_is_named_even_if_the_update_is():
    zero, losses = torch.tensor(0.0), {5: torch.tensor(1.0), 6: torch.tensor(float("inf"))}
    done = [ClientResult(n, 9, 3, 99, 9, loss, torch.tensor(3), zero, 7) for n, loss in losses.items()]
    figures, faults = Cohort(2, [5, 6], [], None, done=done).faults()
    assert faults == {1: "round 2, client 6: the loss is not finite"}
    assert figures[0].tolist() == [1.0, 3.0]


@pytest.mark.parametrize("wire", ["size", "real"])
def test_an_update_that_is_not_finite_is_left_out_if_asked(experiment, monkeypatch, capsys, wire):
    run = experiment(algorithm="las", residual="client", on_nan="skip", wire=wire)
    alone = experiment(algorithm="las", residual="client", wire=wire)
    number, *others = sample_clients(20, 0.2, 0, 1)
    poison(run, number, monkeypatch)
    row = train_round(run, 1)
    assert row["clients"] == 3
    assert f"round 1, client {number}: the update is not finite: left out" in capsys.readouterr().err
    monkeypatch.setattr(server, "sample_clients", lambda *arguments: others)
    expected = train_round(alone, 1)
    assert torch.equal(run.server.theta, alone.server.theta)
    assert {k: row[k] for k in ("train_losses", "train_accs", "kept_share")} == {
        k: expected[k] for k in ("train_losses", "train_accs", "kept_share")
    }
    assert sorted(run.server.compressor.feedback.left) == sorted(others)
    monkeypatch.undo()
    assert train_round(run, 2)["clients"] == 4
    assert run.server.theta.isfinite().all()


def test_a_client_whose_update_is_left_out_does_not_keep_the_model_behind_it(experiment, monkeypatch):
    run = experiment(algorithm="moon", on_nan="skip")
    number, *others = sample_clients(20, 0.2, 0, 1)
    poison(run, number, monkeypatch)
    train_round(run, 1)
    assert sorted(run.clients.trainer.local.last) == sorted(others)


def test_if_no_update_is_finite_the_model_stays(experiment, monkeypatch):
    run = experiment(on_nan="skip")
    before = run.server.theta.clone()
    poison(run, None, monkeypatch)
    assert train_round(run, 1)["clients"] == 0
    assert torch.equal(run.server.theta, before)


def test_a_run_that_crashes_is_no_run_that_goes_on(tmp_path, monkeypatch):
    """An exception that nobody foresaw, as of somebody's own algorithm."""
    out = {"metrics_dir": "m", "plots_dir": "p", "checkpoint_dir": "c", "results_file": "r.csv"}
    out = {name: str(tmp_path / file) for name, file in out.items()}
    args = resolve({**QUICK, "device": "cpu", **out})

    monkeypatch.setattr(fedalg, "run_rounds", lambda *given: {}["control"])
    with pytest.raises(KeyError):
        fedalg.main(args)
    record = json.loads((tmp_path / "m" / f"{run_name(args)}.json").read_text())
    assert record["failed"] == "KeyError: 'control'"
