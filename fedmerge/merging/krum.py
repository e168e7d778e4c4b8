"""The mean of the updates that are nearest to the others."""

import torch

from fedmerge.randomness import count_of
from fedmerge.registry import merging_rule


@merging_rule(
    "krum",
    title="multi-Krum",
    paper="Blanchard et al. 2017",
    needs="all updates",
    weighted=True,
    options={"liars": (0.2, "half", "share of the clients in a round that may lie, rounded up")},
)
def krum(aggregate, layout, liars):
    """the mean of the updates that are nearest to the others (multi-Krum, Blanchard et al. 2017, section 4)

    With f liars among n clients, an update's score is the sum of its squared distances to the n - f - 2 next to it;
    the n - f of the lowest score are averaged, by their weights. 2f + 2 < n must hold: of fewer clients, f is lowered.
    What a client did not send counts as 0.
    """
    deltas = aggregate.deltas
    n, weights, p = len(deltas), deltas[:, : layout.n_trainable], aggregate.shares(deltas)  # without BatchNorm's
    f = max(0, min(count_of(liars, n), (n - 3) // 2))
    distances = torch.cdist(weights, weights, compute_mode="donot_use_mm_for_euclid_dist").square()
    nearest = distances.sort(1).values[:, 1 : 1 + max(1, n - f - 2)]  # without itself
    chosen = nearest.sum(1).argsort(stable=True)[: max(1, n - f)].sort().values
    return (p[chosen] / p[chosen].sum()) @ deltas[chosen]
