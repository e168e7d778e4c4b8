"""Ditto: the common model is FedAvg's, and each client's own against a twin."""

import pytest
import torch
from conftest import train_round

import fedalg

FEW = {"model_name": "small", "n_clients": 3, "participation": 1.0, "momentum": 0.9}

pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.mark.parametrize(
    "how",
    [{}, {"local": "moon"}, {"attack": "sign_flip", "attackers": 0.3, "attack_strength": 1000.0, "merge": "median"}],
    ids=str,
)
def test_the_common_model_is_fedavgs_to_the_last_bit(experiment, how):
    runs = [experiment(algorithm=name, norm="batch", quiet=True, **how, **FEW) for name in ("fedavg", "ditto")]
    steps = []
    for run in runs:
        run.backend.train(run.server.sample(1))
        steps.append([result.n_steps for result in run.server.cohort.done])
        fedalg.run_rounds(run)
    assert steps[0] == steps[1]
    away = [(own - run.server.theta).abs().max() for own in run.server.algorithm.own_model.values()]
    assert max(away) < 1  # nor does an attack spoil what is not sent
    assert torch.equal(runs[0].server.theta, runs[1].server.theta)
    rows = [[{k: v for k, v in row.items() if "seconds" not in k} for row in run.history.rows] for run in runs]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_a_clients_own_model_equals_its_twin(experiment, one_thread, strength):
    """SGD with momentum on the loss and the pull, over the batches that the common model is trained on."""
    run = experiment(algorithm="ditto", ditto_lambda=strength, **FEW)
    own = run.server.theta.clone()
    for round in (1, 2):
        common, client, model = run.server.theta.clone(), run.clients.trainer.client(0, round), run.model
        velocity = torch.zeros_like(own)
        for x, y in client.batches(client.settings.epochs, client.rng("batches")):
            model.load(own)
            model.train()
            model.gradient.zero_()
            torch.nn.functional.cross_entropy(model.module(x), y).backward()
            velocity = 0.9 * velocity + model.gradient + strength * (own - common)
            own = own - client.lr * velocity
        train_round(run, round)
        mine = run.server.algorithm.client_model(run.server.theta, 0)
        torch.testing.assert_close(mine, own, rtol=0, atol=1e-5)
    assert not torch.allclose(own, run.server.theta, atol=1e-3)


@pytest.mark.parametrize("algorithm", ["apfl", "ditto"])
def test_who_never_took_part_uses_the_common_model(experiment, algorithm):
    run = experiment(algorithm=algorithm, **FEW | {"n_clients": 4, "participation": 0.5})
    train_round(run, 1)
    kept = set(run.server.algorithm.own_model)
    assert len(kept) == 2
    for client_id in set(range(4)) - kept:
        assert torch.equal(run.server.algorithm.client_model(run.server.theta, client_id), run.server.theta)


def test_an_own_model_that_diverges_is_found(experiment):
    run = experiment(algorithm="ditto", ditto_lambda=1e30, on_nan="skip", **FEW)
    row = train_round(run, 1)
    assert row["clients"] == 0
    assert run.server.algorithm.own_model == {}
