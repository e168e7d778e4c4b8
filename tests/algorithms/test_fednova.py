"""Normalised averaging against its formula, and against FedAvg where all clients take as many steps."""

import pytest
import torch

import fedalg
from fedmerge.algorithms.fedavg import RunContext
from fedmerge.algorithms.fednova import FedNova
from fedmerge.config.resolve import resolve
from fedmerge.local_training.settings import gradients_of
from fedmerge.merging import Aggregate, Arrival
from fedmerge.networks import Layout
from fedmerge.simulation.cohort import ClientResult
from fedmerge.simulation.experiment import prepare

LAYOUT = Layout(names=("a",), sizes=(2,), n_trainable=2, dim=3)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("n_steps", [1, 2, 7])
def test_the_gradients_of_an_update_counted_one_by_one(momentum, n_steps):
    velocity, total = 0.0, 0.0
    for _ in range(n_steps):  # of gradients that are all 1
        velocity = momentum * velocity + 1
        total += velocity
    assert gradients_of(n_steps, momentum) == pytest.approx(total)


def test_one_round_by_hand():
    """Weights 1 and 3, 2 and 8 steps: tau_eff = 0.25 * 2 + 0.75 * 8 = 6.5, and 6.5 * (0.25 d_1 / 2 + 0.75 d_2 / 8)."""
    algorithm, (d_1, d_2) = FedNova(LAYOUT, RunContext(momentum=0.0)), torch.tensor([[4.0, 0.0, 1.0], [8.0, 16.0, 2.0]])
    results = [ClientResult(i, n, steps, 0, 1, 0, 0, 0, 0) for i, (n, steps) in enumerate([(1, 2), (3, 8)])]
    weights = [algorithm.client_weight(result, result.n_samples) for result in results]
    assert weights == [1 / 2, 3 / 8]
    arrived = [Arrival(r.client_id, r.n_samples, r.n_steps, w) for r, w in zip(results, weights, strict=True)]
    step = (weights[0] * d_1 + weights[1] * d_2) / sum(weights)
    theta = algorithm.merge(torch.zeros(3), step.clone(), Aggregate(arrived))
    by_hand = 6.5 * (0.25 * d_1 / 2 + 0.75 * d_2 / 8)
    torch.testing.assert_close(theta[:2], by_hand[:2])
    assert theta[2] == step[2]  # a buffer is a mean


def test_clients_that_take_as_many_steps_train_fedavgs_model():
    models = []
    for name in ("fednova", "fedavg"):
        settings = {"algorithm": name, "n_epochs": 2, "local_steps": 3, "batch_size": 8, "lr": 0.05, "device": "cpu"}
        run = prepare(resolve({**settings, "dirichlet": 0.5, "quiet": True, "min_client_samples": 20}))
        fedalg.run_rounds(run)
        models.append(run.server.theta)
    torch.testing.assert_close(*models, rtol=1e-4, atol=1e-6)
