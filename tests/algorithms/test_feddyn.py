"""FedDyn against its algorithm in the paper's own variables, and by hand."""

from types import SimpleNamespace

import pytest
import torch

import fedalg
from fedmerge.algorithms.fedavg import RunContext
from fedmerge.algorithms.feddyn import FedDyn
from fedmerge.client_update import ClientUpdate
from fedmerge.merging import Aggregate, Arrival
from fedmerge.networks import Layout
from fedmerge.registry import MERGING_RULES

LAYOUT = Layout(names=("a",), sizes=(2,), n_trainable=2, dim=3)


def by_hand(run, n_rounds):
    """Return the server's model, and the mean of the last models, after Algorithm 1: gradients, and h, as they are."""
    s, trainer, n = run.settings, run.clients.trainer, run.server.layout.n_trainable
    alpha, theta, h, gradients = s.dyn_alpha, run.server.theta.clone(), torch.zeros(n), {}
    for round in range(1, n_rounds + 1):
        ids, _ = run.server.participants(round)
        models = []
        for i in ids:
            own = gradients.get(i, torch.zeros(n))
            model = trainer.client(i, round).train(theta, lambda w, at, _, own=own: -own + alpha * (w - at)).clone()
            gradients[i] = own - alpha * (model - theta)[:n]
            models.append(model)
        mean = torch.stack(models).mean(0)
        h = h - alpha * sum((model - theta)[:n] for model in models) / s.n_clients
        theta = mean.clone()
        theta[:n] -= h / alpha
    return theta, mean


@pytest.mark.slow
def test_three_rounds_are_algorithm_1(experiment):
    settings = {"algorithm": "feddyn", "dyn_alpha": 0.3, "n_clients": 6, "participation": 0.5, "dirichlet": 0.5}
    settings |= {"n_epochs": 3, "norm": "group", "lr": 0.01, "quiet": True}
    theta, mean = by_hand(experiment(**settings), 3)
    run = experiment(**settings)
    fedalg.run_rounds(run)
    torch.testing.assert_close(run.server.theta, theta, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(run.server.served(), mean, rtol=1e-4, atol=1e-5)


def test_a_clients_part_by_hand():
    algorithm, client = FedDyn(LAYOUT, dyn_alpha=0.5), SimpleNamespace(id=7, if_finite=lambda vector: vector)
    w, start = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])
    assert algorithm.gradient_correction(w, start, client).tolist() == [0.5, -1.0]
    for _ in range(2):
        algorithm.acknowledge(client, ClientUpdate(torch.tensor([1.0, -3.0, 9.0])))
    assert algorithm.moved[7].tolist() == [2.0, -6.0]
    assert algorithm.gradient_correction(w, start, client).tolist() == [1.5, -4.0]


def test_the_server_adds_the_mean_move_of_all_clients_whoever_arrived():
    """Two of eight clients arrive, twice; a buffer is a mean of those that did."""
    algorithm, theta = FedDyn(LAYOUT, RunContext(n_clients=8)), torch.zeros(3)
    aggregate = Aggregate([Arrival(i, 1, 1, 1) for i in range(2)], n_clients=8)
    aggregate.mean["move"] = torch.tensor([4.0, 8.0])
    theta = algorithm.merge(theta, torch.tensor([4.0, 8.0, 1.0]), aggregate)
    assert theta.tolist() == [4.0 + 1.0, 8.0 + 2.0, 1.0]
    assert algorithm.global_model(theta).tolist() == [4.0, 8.0, 1.0]
    aggregate.mean["move"] = torch.tensor([4.0, 0.0])
    theta = algorithm.merge(theta, torch.tensor([4.0, 0.0, 1.0]), aggregate)
    assert theta.tolist() == [5.0 + 4.0 + 2.0, 10.0 + 2.0, 2.0]
    assert algorithm.global_model(theta).tolist() == [9.0, 10.0, 2.0]


@pytest.mark.parametrize(
    "how", [*({"merge": rule} for rule in sorted(MERGING_RULES)), {"weighting": "samples", "dirichlet": 0.5}], ids=str
)
def test_what_clients_have_moved_adds_up_to_what_the_server_adds(experiment, small_networks, how):
    settings = {"algorithm": "feddyn", "n_clients": 5, "participation": 0.6, "n_epochs": 3, "local_steps": 2}
    settings |= {"compressor": "topk", "model_name": "small", "quiet": True}
    run = experiment(**settings, **how)
    fedalg.run_rounds(run)
    moved = sum(run.server.algorithm.moved.values()) / 5
    torch.testing.assert_close(run.server.algorithm.drift, moved, rtol=1e-4, atol=1e-6)
