"""APFL: the common model is FedAvg's, and each client's own against a twin."""

import pytest
import torch
from conftest import train_round

import fedalg

FEW = {"model_name": "small", "n_clients": 3, "participation": 1.0, "momentum": 0.9}

pytestmark = pytest.mark.usefixtures("small_networks", "one_thread")


@pytest.mark.parametrize(
    "how",
    [
        {"norm": "batch"},
        {"local_optimizer": "adam", "lr": 1e-3, "clip_norm": 1.0},
        {"norm": "batch", "local_steps": 3, "bn_every": 2, "eval_every": 2},
        {"attack": "sign_flip", "attackers": 0.3, "attack_strength": 1000.0, "merge": "median"},
        {"attack": "label_flip", "attackers": 0.3},
    ],
    ids=str,
)
def test_the_common_model_is_fedavgs_to_the_last_bit(experiment, how):
    few = {k: v for k, v in FEW.items() if k != "momentum" or "local_optimizer" not in how}
    runs = [experiment(algorithm=name, quiet=True, **few | how) for name in ("fedavg", "apfl")]
    for run in runs:
        fedalg.run_rounds(run)
    assert set(run.server.algorithm.own_model) == {0, 1, 2} - set(getattr(run.clients.trainer.attack, "numbers", ()))
    assert torch.equal(runs[0].server.theta, runs[1].server.theta)
    rows = [[{k: v for k, v in row.items() if "seconds" not in k} for row in run.history.rows] for run in runs]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_a_clients_own_model_equals_its_twin(experiment, alpha):
    """SGD with momentum and decay of two models over the same batches, with BatchNorm's statistics of their own."""
    run = experiment(algorithm="apfl", apfl_alpha=alpha, norm="batch", weight_decay=0.01, **FEW)
    own, n = run.server.theta.clone(), run.model.layout.n_trainable
    for round in (1, 2):
        common, client, model = run.server.theta.clone(), run.clients.trainer.client(0, round), run.model
        velocity = [torch.zeros(n), torch.zeros(n)]
        for x, y in client.batches(client.settings.epochs, client.rng("batches")):
            mixed = torch.cat([torch.lerp(common, own, alpha)[:n], own[n:]])
            gradients, buffers = [], []
            for vector in (common, mixed):
                model.load(vector)
                model.train()
                model.gradient.zero_()
                torch.nn.functional.cross_entropy(model.module(x), y).backward()
                gradients.append(model.gradient.clone())
                buffers.append(model.vector[n:].clone())
            gradients[1] *= alpha
            for i, vector in enumerate((common, own)):
                velocity[i] = 0.9 * velocity[i] + gradients[i] + 0.01 * vector[:n]
                vector[:n] -= client.lr * velocity[i]
                vector[n:] = buffers[i]
        train_round(run, round)
        torch.testing.assert_close(run.server.algorithm.own_model[0], own, rtol=0, atol=1e-5)
    mine = run.server.algorithm.client_model(run.server.theta, 0)
    torch.testing.assert_close(mine, alpha * own + (1 - alpha) * run.server.theta, rtol=0, atol=1e-5)
    assert not torch.allclose(own, run.server.theta, atol=1e-3)


def test_an_own_model_that_diverges_is_found(experiment, monkeypatch):
    run = experiment(algorithm="apfl", on_nan="skip", **FEW)
    train_round(run, 1)
    run.server.algorithm.own_model[1][:] = 1e38
    assert train_round(run, 2)["clients"] == 2
