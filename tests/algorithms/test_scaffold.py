"""SCAFFOLD against its algorithm written out client by client, by hand, and by what it promises."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import fedalg
from fedmerge import wire
from fedmerge.algorithms.fedavg import RunContext
from fedmerge.algorithms.scaffold import Scaffold
from fedmerge.config.resolve import resolve
from fedmerge.merging import Aggregate, Arrival
from fedmerge.networks import Layout
from fedmerge.simulation.experiment import prepare

QUICK = {
    "n_epochs": 3,
    "n_client_epochs": 1,
    "batch_size": 16,
    "lr": 0.05,
    "n_clients": 6,
    "device": "cpu",
    "quiet": True,
}
LAYOUT = Layout(names=("a",), sizes=(2,), n_trainable=2, dim=3)


def run_of(**settings):
    return prepare(resolve({**QUICK, "algorithm": "scaffold", **settings}))


def by_hand(run, n_rounds):
    """Return the server's model and control after Algorithm 1, option II, with the run's own clients and no wire."""
    s, trainer, n = run.settings, run.clients.trainer, run.server.layout.n_trainable
    x, c, own = run.server.theta.clone(), torch.zeros(n), {}
    for round in range(1, n_rounds + 1):
        ids, _ = run.server.participants(round)
        sizes = torch.tensor([float(len(run.clients.parts[i])) for i in ids])
        moves, changes = [], []
        for i in ids:
            c_i = own.get(i, torch.zeros(n))
            client = trainer.client(i, round)
            y = client.train(x, lambda w, start, client, c_i=c_i, c=c: c - c_i).clone()
            steps = client.n_steps
            if s.momentum:  # the gradients that the steps are made of: one by one, how long each has acted
                steps = sum(sum(s.momentum**k for k in range(client.n_steps - j)) for j in range(client.n_steps))
            new = c_i - c + (x - y)[:n] / (steps * s.lr)
            moves.append(y - x)
            changes.append(new - c_i)
            own[i] = new
        x = x + (sizes / sizes.sum()) @ torch.stack(moves)
        c = c + len(ids) / s.n_clients * torch.stack(changes).mean(0)
    return x, c


@pytest.mark.slow
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_three_rounds_are_algorithm_1(momentum):
    settings = {"participation": 0.5, "dirichlet": 0.5, "momentum": momentum, "norm": "group", "lr": 0.01}
    run = run_of(**settings)
    x, c = by_hand(run_of(**settings), 3)
    fedalg.run_rounds(run)
    torch.testing.assert_close(run.server.theta, x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(run.server.algorithm.control, c, rtol=1e-3, atol=1e-4)


def test_a_clients_part_by_hand():
    algorithm = Scaffold(LAYOUT)
    algorithm.client_control[7] = torch.tensor([1.0, 1.0])
    client = SimpleNamespace(id=7, lr=0.5, gradients=4, received={"control": torch.tensor([0.5, -0.5])})
    client.if_finite = lambda vector: vector
    assert algorithm.gradient_correction(None, None, client).tolist() == [-0.5, -1.5]  # c - c_i
    update = algorithm.client_update(torch.tensor([2.0, -4.0, 9.0]), None, client)
    assert update.control.tolist() == [-1.0 - 0.5, 2.0 + 0.5]  # -delta / (K lr) - c
    algorithm.acknowledge(client, update)
    assert algorithm.client_control[7].tolist() == [-0.5, 3.5]


def test_the_servers_control_moves_by_the_share_of_the_clients_that_arrived():
    algorithm = Scaffold(LAYOUT, RunContext(n_clients=8))
    arrived = [Arrival(i, 10 * i + 1, 5, 10 * i + 1) for i in range(2)]
    aggregate = Aggregate(arrived, {"control": torch.tensor([4.0, 8.0])}, n_clients=8)
    theta = algorithm.merge(torch.ones(3), torch.tensor([1.0, 2.0, 3.0]), aggregate)
    assert theta.tolist() == [2.0, 3.0, 4.0]
    assert algorithm.control.tolist() == [1.0, 2.0]


def test_with_all_clients_the_servers_control_is_the_mean_of_theirs():
    run = run_of(participation=1.0, dirichlet=0.5)
    fedalg.run_rounds(run)
    own = torch.stack(list(run.server.algorithm.client_control.values()))
    assert len(own) == 6
    torch.testing.assert_close(run.server.algorithm.control, own.mean(0), rtol=1e-4, atol=1e-5)


def test_the_first_round_is_fedavgs_and_the_second_is_not():
    runs = [run_of(n_epochs=n, algorithm=name) for n in (1, 2) for name in ("scaffold", "fedavg")]
    for run in runs:
        fedalg.run_rounds(run)
    assert torch.equal(runs[0].server.theta, runs[1].server.theta)
    assert not torch.equal(runs[2].server.theta, runs[3].server.theta)


@pytest.mark.parametrize("wire_", ["size", "real"])
def test_both_vectors_are_counted_both_ways(wire_):
    run = run_of(downlink="dense", shared_init=False, wire=wire_, participation=0.5, norm="batch", min_client_samples=2)
    fedalg.run_rounds(run)
    layout = run.server.layout
    size = wire.dense_bytes(layout.dim + layout.n_trainable)
    for row in run.history.rows:
        assert row["bytes_up"] == row["bytes_down"] == row["clients"] * size


def test_a_sparse_upload_leaves_the_control_whole():
    run = run_of(compressor="topk", sparsity=0.01)
    fedalg.run_rounds(run)
    n = run.server.layout.n_trainable
    (row, *_) = run.history.rows
    assert row["bytes_up"] > row["clients"] * 4 * n
    assert row["bytes_up"] < row["clients"] * 4 * 1.1 * n
    assert row["kept_share"] == pytest.approx(0.01, rel=0.1)


def test_a_client_that_diverged_keeps_its_control():
    """Its update is left out of c, and so is the change of its c_i: c stays the mean of them."""
    run = run_of(participation=1.0, on_nan="skip", n_epochs=4)
    fedalg.train_round(run, 1)
    run.clients.trainer.settings = replace(run.clients.trainer.settings, lr=1e30)
    kept = {client_id: control.clone() for client_id, control in run.server.algorithm.client_control.items()}
    row = fedalg.train_round(run, 2)
    assert row["clients"] == 0
    assert kept.keys() == run.server.algorithm.client_control.keys()
    for client_id, control in run.server.algorithm.client_control.items():
        assert torch.equal(control, kept[client_id])


def test_clients_without_samples_have_no_part_in_the_mean_control():
    run = run_of(dirichlet=0.02, n_clients=30, min_client_samples=0, participation=1.0, n_epochs=2, norm="none")
    assert run.server.empty
    fedalg.run_rounds(run)
    algorithm = run.server.algorithm
    mean = torch.stack([algorithm.client_control[n] for n in range(30) if n not in run.server.empty]).mean(0)
    torch.testing.assert_close(algorithm.control, mean, rtol=1e-4, atol=1e-5)
