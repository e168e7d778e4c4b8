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
        {"norm": "batch", "apfl_adaptive": True},
    ],
    ids=str,
)
def test_the_common_model_is_fedavgs_to_the_last_bit(experiment, how):
    few = {k: v for k, v in FEW.items() if k != "momentum" or "local_optimizer" not in how}
    plain = {k: v for k, v in how.items() if not k.startswith("apfl_")}
    runs = [experiment(algorithm="fedavg", quiet=True, **few | plain)]
    runs += [experiment(algorithm="apfl", quiet=True, **few | how)]
    for run in runs:
        fedalg.run_rounds(run)
    assert set(run.server.algorithm.own_model) == {0, 1, 2} - set(getattr(run.clients.trainer.attack, "numbers", ()))
    assert torch.equal(runs[0].server.theta, runs[1].server.theta)
    rows = [[{k: v for k, v in row.items() if "seconds" not in k} for row in run.history.rows] for run in runs]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(("alpha", "learned"), [(0.25, False), (1.0, False), (0.25, True), (0.75, True)])
def test_a_clients_own_model_equals_its_twin(experiment, alpha, learned):
    """SGD with momentum and decay of two models over the same batches, with BatchNorm's statistics of their own."""
    run = experiment(
        algorithm="apfl", apfl_alpha=alpha, apfl_adaptive=learned, norm="batch", weight_decay=0.01, lr=0.1, **FEW
    )
    own, n, first_alpha = run.server.theta.clone(), run.model.layout.n_trainable, alpha
    for round in (1, 2, 3):  # in the first, both models are the same at first, and the share stays
        common, client, model = run.server.theta.clone(), run.clients.trainer.client(0, round), run.model
        velocity = [torch.zeros(n), torch.zeros(n)]
        for step, (x, y) in enumerate(client.batches(client.settings.epochs, client.rng("batches"))):
            mixed = torch.cat([torch.lerp(common, own, alpha)[:n], own[n:]])
            gradients, buffers = [], []
            for vector in (common, mixed):
                model.load(vector)
                model.train()
                model.gradient.zero_()
                torch.nn.functional.cross_entropy(model.module(x), y).backward()
                gradients.append(model.gradient.clone())
                buffers.append(model.vector[n:].clone())
            slope = float((own[:n] - common[:n]) @ gradients[1])
            gradients[1] *= alpha
            if learned and step == 0:
                alpha = min(max(alpha - client.lr * slope, 0), 1)
            for i, vector in enumerate((common, own)):
                velocity[i] = 0.9 * velocity[i] + gradients[i] + 0.01 * vector[:n]
                vector[:n] -= client.lr * velocity[i]
                vector[n:] = buffers[i]
        train_round(run, round)
        torch.testing.assert_close(run.server.algorithm.own_model[0], own, rtol=1e-5, atol=1e-5)
    mine = run.server.algorithm.client_model(run.server.theta, 0)
    torch.testing.assert_close(mine, alpha * own + (1 - alpha) * run.server.theta, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(own, run.server.theta, atol=1e-3)
    assert (abs(alpha - first_alpha) > 1e-3) == learned


@pytest.mark.parametrize(("far", "end"), [(1e3, 0.0), (-1e3, 1.0)])
def test_a_learned_share_stays_between_none_and_all(experiment, far, end):
    """The own model is put far up, or down, the slope of the loss at the received one."""
    run = experiment(algorithm="apfl", apfl_adaptive=True, apfl_alpha=1e-6, **FEW)
    client, model, theta = run.clients.trainer.client(1, 1), run.model, run.server.theta
    x, y = next(iter(client.batches(1, client.rng("batches"))))
    model.load(theta)
    model.gradient.zero_()
    torch.nn.functional.cross_entropy(model.module(x), y).backward()
    own, n = theta.clone(), model.layout.n_trainable
    own[:n] += far * model.gradient
    run.server.algorithm.own_model[1] = own
    train_round(run, 1)
    assert run.server.algorithm.own_alpha[1].tolist() == [end]


def test_an_own_model_that_diverges_is_found(experiment, monkeypatch):
    run = experiment(algorithm="apfl", on_nan="skip", **FEW)
    train_round(run, 1)
    run.server.algorithm.own_model[1][:] = 1e38
    assert train_round(run, 2)["clients"] == 2


def test_a_learned_share_is_the_clients_and_stays_with_those_that_take_part(experiment):
    run = experiment(algorithm="apfl", apfl_adaptive=True, **FEW | {"participation": 0.4, "n_clients": 5})
    train_round(run, 1)
    shares = dict(run.server.algorithm.own_alpha)
    assert set(shares) == set(run.server.algorithm.own_model)
    assert len(shares) == 2
    own, theta = run.server.algorithm.own_model, run.server.theta
    for client, alpha in shares.items():
        mine = run.server.algorithm.client_model(theta, client)
        torch.testing.assert_close(mine, theta + alpha * (own[client] - theta), rtol=0, atol=1e-6)
