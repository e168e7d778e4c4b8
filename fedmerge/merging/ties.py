"""Updates trimmed, their signs elected, and merged where they agree."""

import torch

from fedmerge.compressors.largest import top_k_mask
from fedmerge.registry import merging_rule


@merging_rule(
    "ties",
    title="TIES",
    paper="Yadav et al. 2023",
    needs="all updates",
    options={"ties_keep": (0.2, "share", "share of each client's update that counts, the largest")},
)
def ties(aggregate, layout, ties_keep):
    """the mean of trimmed updates whose signs agree with the majority's, by weight (Yadav et al. 2023, Algorithm 1)"""
    n, shares = layout.n_trainable, aggregate.shares(aggregate.deltas)
    trimmed = torch.stack([d[:n] * top_k_mask(d[:n], ties_keep, (n,)) for d in aggregate.deltas])
    agree = (trimmed.sign() == (shares @ trimmed).sign()) & (trimmed != 0)
    weights = shares[:, None] * agree
    step = (weights * trimmed).sum(0) / weights.sum(0).clamp_min(1e-30)  # less than the share of any client
    return torch.cat([step, shares @ aggregate.deltas[:, n:]])
