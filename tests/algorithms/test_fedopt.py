"""The server's optimisers against Algorithm 2 of Reddi et al., number by number, and against FedAvg."""

import pytest
import torch

from fedmerge.algorithms.fedopt import FedOpt
from fedmerge.networks import Layout
from fedmerge.registry import specs

LAYOUT = Layout(names=("a",), sizes=(3,), n_trainable=3, dim=4)
STEPS = torch.tensor([[1.0, -2.0, 0.0, 5.0], [0.5, 4.0, 0.0, -5.0], [-3.0, 0.0, 0.25, 1.0]])


def path_of(**options):
    """Return the models after each of STEPS from 0, [rounds, dim]."""
    algorithm, theta, models = FedOpt(LAYOUT, **options), torch.zeros(4), []
    for step in STEPS:
        theta = algorithm.merge(theta, step.clone(), None)
        models.append(theta.clone())
    return torch.stack(models)


def slow(kind, lr, beta1, beta2, tau):
    """The same, one number at a time."""
    models = []
    x, m, v = [0.0] * 4, [0.0] * 3, [tau**2] * 3
    for step in STEPS.tolist():
        for i in range(3):
            d = step[i]
            m[i] = beta1 * m[i] + (d if kind == "momentum" else (1 - beta1) * d)
            if kind == "adagrad":
                v[i] = v[i] + d * d
            elif kind == "yogi":
                sign = (d * d > v[i]) - (d * d < v[i])
                v[i] = v[i] + (1 - beta2) * d * d * sign
            elif kind == "adam":
                v[i] = beta2 * v[i] + (1 - beta2) * d * d
            x[i] += lr * m[i] / (1 if kind == "momentum" else v[i] ** 0.5 + tau)
        x[3] += step[3]  # a buffer
        models.append(list(x))
    return torch.tensor(models)


@pytest.mark.parametrize("kind", ["momentum", "adam", "yogi", "adagrad"])
def test_three_rounds_by_hand(kind):
    how = {"lr": 0.3, "beta1": 0.8, "beta2": 0.9, "tau": 0.01}
    found = path_of(server_optimizer=kind, **{f"server_{name}": value for name, value in how.items()})
    torch.testing.assert_close(found, slow(kind, **how), rtol=1e-5, atol=1e-6)


def test_momentum_of_zero_is_fedavg():
    assert torch.equal(path_of(server_optimizer="momentum", server_lr=1.0, server_beta1=0.0), STEPS.cumsum(0))


def test_four_names_have_an_optimiser_each():
    found = specs("algorithm")
    chosen = {
        name: {"server_optimizer": "adam", **found[name].defaults} for name in found if found[name].object == "FedOpt"
    }
    kinds = {name: settings["server_optimizer"] for name, settings in chosen.items()}
    assert kinds == {"fedavgm": "momentum", "fedadam": "adam", "fedyogi": "yogi", "fedadagrad": "adagrad"}
