"""FedALA: its mixtures against a twin, and what of a client's change is sent."""

import pytest
import torch
import torch.nn.functional as F
from conftest import train_round, train_rounds

from fedmerge.algorithms import fedala
from fedmerge.errors import InputError

FEW = {"model_name": "small", "n_clients": 3, "participation": 1.0, "n_epochs": 3}

pytestmark = pytest.mark.usefixtures("small_networks", "one_thread")


def test_who_takes_part_for_the_first_time_begins_as_under_fedavg(experiment):
    runs = [experiment(algorithm=name, **FEW) for name in ("fedavg", "fedala")]
    for run in runs:
        train_round(run, 1)
    assert torch.equal(runs[0].server.theta, runs[1].server.theta)


@pytest.mark.parametrize("layers", [1, 3])
def test_the_mixture_equals_its_twin(experiment, monkeypatch, layers):
    """Two epochs at first, then one, by gradients of the weights of the model that is mixed."""
    monkeypatch.setattr(fedala, "MOST", 2)
    run = experiment(algorithm="fedala", ala_layers=layers, ala_rate=20.0, ala_share=0.5, norm="group", **FEW)
    algorithm, model, client_id = run.server.algorithm, run.model, 1
    n = model.layout.n_trainable
    begin = {1: n - 10 * 33, 3: 0}[layers]
    places = torch.arange(begin, n)
    assert torch.equal(algorithm.places, places)
    mix = torch.ones(n - begin)
    train_round(run, 1)
    for round, epochs in ((2, 2), (3, 1)):
        received, own = run.server.theta.clone(), algorithm.last_model[client_id].clone()
        client = run.clients.trainer.client(client_id, round)
        order = torch.randperm(client.n_samples, generator=client.rng("mixture samples"))
        some = client.indices[order[: round_half(client.n_samples)]]
        for epoch in range(epochs):
            for x, y in client.batches(1, client.rng("mixture", epoch), some):
                vector = received.clone()
                vector[begin:n] = own[begin:n] + (received - own)[begin:n] * mix
                model.load(vector)
                model.gradient.zero_()
                F.cross_entropy(model.module(x), y).backward()
                mix = (mix - 20.0 * model.gradient[begin:] * (received - own)[begin:n]).clamp(0, 1)
        train_round(run, round)
        torch.testing.assert_close(algorithm.mix[client_id], mix, rtol=0, atol=1e-4)
        assert mix.min() < 0.9
    expected = run.server.theta.clone()
    own = algorithm.last_model[client_id]
    expected[begin:n] = own[begin:n] + (expected - own)[begin:n] * mix
    torch.testing.assert_close(algorithm.client_model(run.server.theta, client_id), expected, rtol=0, atol=1e-4)


def round_half(n):
    return max(1, round(0.5 * n))


def test_the_server_makes_the_mean_of_what_clients_trained(experiment):
    run = experiment(algorithm="fedala", weighting="clients", **FEW)
    train_rounds(run, 3)
    trained = torch.stack([run.server.algorithm.last_model[i] for i in range(3)])
    torch.testing.assert_close(run.server.theta, trained.mean(0), rtol=0, atol=1e-6)


def test_the_first_learning_ends_when_the_loss_is_still(experiment, monkeypatch):
    run = experiment(algorithm="fedala", **FEW)
    train_round(run, 1)
    losses, calls = [1.0, 9.0, *[2.0] * 20], []

    def learn_mix(client, own, received, mix, *more):
        calls.append(client.id)
        mix *= 0.5
        return torch.tensor(losses[calls.count(client.id) - 1])

    monkeypatch.setattr("fedmerge.local_training.client.Client.learn_mix", learn_mix)
    train_round(run, 2)
    assert [calls.count(i) for i in range(3)] == [12] * 3  # the last ten of these are 2
    train_round(run, 3)
    assert [calls.count(i) for i in range(3)] == [13] * 3


def test_an_attacker_has_no_model_of_its_own(experiment):
    run = experiment(algorithm="fedala", attack="sign_flip", attackers=0.3, attack_strength=5.0, merge="median", **FEW)
    train_rounds(run, 2)
    (attacker,) = run.clients.trainer.attack.numbers
    assert set(run.server.algorithm.last_model) == {0, 1, 2} - {attacker}


def test_more_layers_than_there_are_are_refused(experiment):
    with pytest.raises(InputError, match="--ala_layers 4: the network has 3 that are trained"):
        experiment(algorithm="fedala", ala_layers=4, **FEW)


def test_a_mixture_of_ones_is_the_received_model_to_the_last_bit(experiment):
    run = experiment(algorithm="fedala", ala_layers=3, **FEW)
    train_round(run, 1)
    algorithm, theta = run.server.algorithm, torch.randn(run.model.layout.dim)
    assert torch.equal(algorithm.client_model(theta, 0), theta)  # nothing is learned yet
    for value, expected in ((1.0, theta), (0.0, algorithm.last_model[0])):
        algorithm.mix[0] = torch.full((len(algorithm.places),), value)
        assert torch.equal(algorithm.client_model(theta, 0), expected)


def test_it_is_learned_until_still_only_once_even_if_nothing_is_learned(experiment, monkeypatch):
    run, calls = experiment(algorithm="fedala", **FEW), []
    monkeypatch.setattr(
        "fedmerge.local_training.client.Client.learn_mix", lambda client, *_: calls.append(client.id) or torch.ones(())
    )
    train_rounds(run, 3)
    assert [calls.count(i) for i in range(3)] == [11 + 1] * 3


def test_two_samples_are_the_least_that_it_learns_by(experiment):
    """BatchNorm has no variance of a single one that is one pixel wide."""
    run = experiment(algorithm="fedala", ala_share=1e-3, **FEW | {"model_name": "tiny"}, norm="batch")
    train_rounds(run, 2)
    assert set(run.server.algorithm.mix) == {0, 1, 2}
