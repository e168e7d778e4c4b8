"""Random-k sends the share it says, other weights each time, and with error feedback all of them in the end."""

import torch

from fedmerge.client_update import ClientUpdate
from fedmerge.compressors import ErrorFeedback
from fedmerge.compressors.randk import RandomK
from fedmerge.networks import Layout
from fedmerge.randomness import generator

LAYOUT = Layout(names=("a",), sizes=(100,), n_trainable=100, dim=102)


class Client:
    id, scratch = 3, None

    def __init__(self, round):
        self.round = round

    def rng(self, purpose):
        return generator(0, purpose, self.round, self.id)


def test_the_share_is_sent_and_others_each_round():
    compressor, delta = RandomK(LAYOUT, random_share=0.1), torch.arange(1.0, 103.0)
    masks = []
    for round in (1, 2, 1):
        sent, mask = compressor.compress(delta, None, Client(round))
        assert int(mask.sum()) == 10
        assert torch.equal(sent[:100], delta[:100] * mask)
        assert torch.equal(sent[100:], delta[100:])
        masks.append(mask)
    assert torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0], masks[1])


def test_what_is_not_sent_comes_later():
    compressor = RandomK(LAYOUT, ErrorFeedback(), random_share=0.2)
    arrived = torch.zeros(100)
    for round in range(1, 6):
        sent, mask = compressor.compress(torch.ones(102), None, Client(round))
        compressor.acknowledge(Client(round), ClientUpdate(sent, mask))
        arrived += sent[:100]
    left = compressor.of_clients()["left"][3]
    assert torch.equal(arrived + left, torch.full((100,), 5.0))
    assert 0 < (left == 0).sum() < 100
