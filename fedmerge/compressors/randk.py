"""Weights chosen by chance."""

import torch

from fedmerge.compressors.base import Compressor
from fedmerge.randomness import round_half_up
from fedmerge.registry import compressor


@compressor("randk", title="random-k", paper="Stich et al. 2018")
class RandomK(Compressor):
    """weights drawn at random, others in each round and for each client (Stich et al. 2018); what top-k has to beat"""

    options = {"random_share": (0.2, "share", "share of the weights that each client sends")}

    def choose(self, change, start, client):
        n = len(change)
        order = torch.randperm(n, generator=client.rng("random-k"))[: max(1, round_half_up(self.random_share * n))]
        return torch.zeros_like(change, dtype=torch.bool).index_fill_(0, order.to(change.device), True)
