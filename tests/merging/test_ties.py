"""TIES by hand, and what it leaves alone."""

import torch

from fedmerge.merging import Aggregate, Arrival
from fedmerge.merging.ties import ties
from fedmerge.networks import Layout

LAYOUT = Layout(names=("a",), sizes=(4,), n_trainable=4, dim=5)


def merged(deltas, weights=None, keep=0.5):
    deltas = torch.tensor(deltas)
    weights = weights or [1] * len(deltas)
    arrived = [Arrival(i, 1, 1, weight) for i, weight in enumerate(weights)]
    return ties(Aggregate(arrived, deltas=deltas), LAYOUT, keep)


def test_three_clients_by_hand():
    """Kept are 4 -3 | -1 -5 | 2 -4: the first weight's votes are 4 - 1 + 2 > 0, so that 4 and 2 are averaged."""
    deltas = [[4.0, -3.0, 1.0, 0.5, 3.0], [-1.0, 0.5, 0.1, -5.0, 6.0], [2.0, 0.0, -4.0, 1.0, 0.0]]
    torch.testing.assert_close(merged(deltas), torch.tensor([3.0, -3.0, -4.0, -5.0, 3.0]))


def test_weights_are_votes_and_shares():
    deltas = [[4.0, -3.0, 0.0, 0.0, 0.0], [-1.0, -6.0, 0.0, 0.0, 4.0]]
    torch.testing.assert_close(merged(deltas, [1, 9]), torch.tensor([-1.0, -5.7, 0.0, 0.0, 3.6]))


def test_clients_that_agree_are_averaged():
    deltas = torch.rand(3, 5) + 0.1
    torch.testing.assert_close(merged(deltas.tolist(), keep=1.0), deltas.mean(0))


def test_a_tie_moves_nothing():
    assert merged([[2.0, 1.0, 0.0, 0.0, 0.0], [-2.0, 1.0, 0.0, 0.0, 0.0]])[0] == 0
