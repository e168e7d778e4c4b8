"""Clients that lie, against twins."""

import pytest
import torch
from conftest import train_round

from fedmerge.simulation.attacks import Attack


def test_attackers_are_a_share_of_the_clients_and_stay_the_same():
    numbers = Attack("noise", 50, 0.2, 1.0, seed=3).numbers
    assert len(numbers) == 10
    assert numbers == Attack("sign_flip", 50, 0.2, 5.0, seed=3).numbers != Attack("noise", 50, 0.2, 1.0, seed=4).numbers
    assert not Attack("noise", 20, 0.02, 1.0, seed=0).numbers
    with pytest.raises(ValueError, match="no attack x"):
        Attack("x", 20, 0.2, 1.0, seed=0)


def trained(run, number):
    return run.clients.trainer.client(number, 1).train(run.server.theta).clone()


def test_a_flipped_sign_is_the_honest_update_the_other_way(experiment):
    honest, lying = experiment(norm="batch"), experiment(norm="batch", attack="sign_flip", attack_strength=3.0)
    n, attackers = honest.model.layout.n_trainable, lying.clients.trainer.attack.numbers
    for number in (min(attackers), min(set(range(20)) - attackers)):
        factor = -3.0 if number in attackers else 1.0
        update = trained(honest, number) - honest.server.theta
        expected = honest.server.theta + torch.cat([factor * update[:n], update[n:]])
        assert torch.allclose(trained(lying, number), expected, atol=1e-6)


def test_noise_has_its_size_from_the_honest_update_and_its_draws_from_round_and_client(experiment):
    honest, lying = experiment(), experiment(attack="noise", attack_strength=4.0, attackers=1.0)
    noises = [trained(lying, number) - lying.server.theta for number in (0, 1)]
    for number, noise in enumerate(noises):
        size = (trained(honest, number) - honest.server.theta).square().mean().sqrt()
        assert noise.square().mean().sqrt() == pytest.approx(4 * size.item(), rel=0.02)
    assert torch.corrcoef(torch.stack(noises))[0, 1].abs() < 0.05
    assert torch.equal(trained(lying, 0) - lying.server.theta, noises[0])


def test_flipped_labels_are_those_of_a_client_with_such_data(experiment):
    other, lying = experiment(), experiment(attack="label_flip")
    number = min(lying.clients.trainer.attack.numbers)
    other.splits.train.labels.copy_(9 - other.splits.train.labels)
    assert torch.equal(trained(other, number), trained(lying, number))


def test_nobody_lying_is_an_honest_run(experiment):
    runs = experiment(), experiment(attack="sign_flip", attackers=0.01)
    for run in runs:
        train_round(run, 1)
    assert torch.equal(runs[0].server.theta, runs[1].server.theta)
