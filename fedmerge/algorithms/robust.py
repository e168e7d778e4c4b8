"""Merges that liars cannot spoil."""

import math

import torch

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.registry import algorithm


def count_of(share, n):
    """Return how many a share of n are, rounded up; 0.07 of 100 are 7, whatever the last bit of the product."""
    return math.ceil(share * n - 1e-9)


@algorithm("median", title="median")
class Median(FedAvg):
    """the median of the clients' updates, coordinate by coordinate: half may lie (Yin et al. 2018, Definition 1)

    Of an even number, the mean of the two in the middle. The clients' weights have no part in it.
    """

    means = ()

    def merge(self, theta, arrived):
        ordered, half = arrived.deltas.sort(0).values, len(arrived.deltas) // 2
        return theta + (ordered[half] if len(ordered) % 2 else ordered[half - 1 : half + 1].mean(0))


@algorithm("trimmed_mean", title="trimmed mean")
class TrimmedMean(FedAvg):
    """the mean of each coordinate without its largest and its smallest values (Yin et al. 2018, Definition 2)"""

    options = {"trim": (0.2, "half", "share of the clients left out at either end, rounded up")}
    means = ()

    def merge(self, theta, arrived):
        n = len(arrived.deltas)
        k = min(count_of(self.trim, n), (n - 1) // 2)
        return theta + arrived.deltas.sort(0).values[k : n - k].mean(0)


@algorithm("krum", title="multi-Krum")
class MultiKrum(FedAvg):
    """the mean of the updates that are nearest to the others (multi-Krum, Blanchard et al. 2017, section 4)

    With f liars among n clients, an update's score is the sum of its squared distances to the n - f - 2 next to it;
    the n - f of the lowest score are averaged, by their weights. 2f + 2 < n must hold: of fewer clients, f is lowered.
    """

    options = {"liars": (0.2, "half", "share of the clients in a round that may lie, rounded up")}
    means = ()

    def merge(self, theta, arrived):
        p, deltas = arrived.p, arrived.deltas
        n, weights = len(deltas), deltas[:, : self.layout.n_trainable]  # statistics of BatchNorm are of another size
        f = max(0, min(count_of(self.liars, n), (n - 3) // 2))
        distances = torch.cdist(weights, weights, compute_mode="donot_use_mm_for_euclid_dist").square()
        nearest = distances.sort(1).values[:, 1 : 1 + max(1, n - f - 2)]  # without itself
        chosen = nearest.sum(1).argsort(stable=True)[: max(1, n - f)].sort().values
        return theta + (p[chosen] / p[chosen].sum()) @ deltas[chosen]
