"""Updates thinned at random, small changes more often than large ones, their signs elected."""

import torch

from fedmerge.merging.signs import agreeing_mean
from fedmerge.registry import merging_rule


@merging_rule(
    "della",
    title="DELLA",
    paper="Deep et al. 2024",
    needs="all updates",
    weighted=True,
    options={
        "della_keep": (0.5, "share", "mean chance of a weight's change to stay in a client's update"),
        "della_spread": (0.2, "decay", "how far the chances of the largest and the smallest change are apart"),
    },
)
def della(aggregate, layout, della_keep, della_spread):
    """updates thinned by the sizes of their changes, then merged as by TIES (Deep et al. 2024, section 3)

    In each row of a matrix (a kernel is one of out x in * k * k), and in each vector, the chance to stay grows with the
    rank by size, and is kept within 0 and 1; what stays is divided by it. Signs are elected and changes that agree
    are averaged. Buffers are averaged whole.
    """
    deltas, n = aggregate.deltas, layout.n_trainable
    for client, delta in zip(aggregate.arrived, deltas[:, :n], strict=True):
        chance = _ranks(delta, layout).mul_(della_spread).add_(della_keep - della_spread / 2).clamp_(0, 1)
        delta *= aggregate.uniform(client, n, delta) < chance
        delta /= chance.clamp_min(1e-30)  # what has none is gone
    return agreeing_mean(deltas, aggregate.shares(deltas), n)


def _ranks(delta, layout):
    """Return for each weight, [n_trainable], its rank by size in its row: from 0, the smallest, to 1."""
    ranks = torch.empty_like(delta)
    for part, out in zip(layout.rows_of(delta), layout.rows_of(ranks), strict=True):
        last = part.shape[1] - 1
        places = part.abs().argsort(dim=1, stable=True).argsort(1)
        out[:] = places / last if last else 0.5
    return ranks
