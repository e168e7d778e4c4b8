"""Updates trimmed, their signs elected, and merged where they agree."""

from fedmerge.compressors.largest import top_k_mask
from fedmerge.merging.signs import agreeing_mean
from fedmerge.registry import merging_rule


@merging_rule(
    "ties",
    title="TIES",
    paper="Yadav et al. 2023",
    needs="all updates",
    weighted=True,
    options={"ties_keep": (0.2, "share", "share of each client's update that counts, the largest")},
)
def ties(aggregate, layout, ties_keep):
    """the mean of trimmed updates whose signs agree with the majority's, by weight (Yadav et al. 2023, Algorithm 1)"""
    n, deltas = layout.n_trainable, aggregate.deltas
    for delta in deltas[:, :n]:
        delta *= top_k_mask(delta, ties_keep, (n,))
    return agreeing_mean(deltas, aggregate.shares(deltas), n)
