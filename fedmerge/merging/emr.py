"""The largest change of those that agree in direction, weight by weight."""

import torch

from fedmerge.registry import merging_rule


@merging_rule("emr", title="EMR-Merging", paper="Huang et al. 2024", needs="all updates", weighted=True)
def emr(aggregate, layout):
    """each weight's largest change among those in the direction that is elected (Huang et al. 2024)

    The sign of the mean is elected. Buffers are averaged. This is the unified vector; masks and rescalers of clients
    are in their personal parts, by --part_kind emr.
    """
    deltas, n = aggregate.deltas, layout.n_trainable
    step = aggregate.shares(deltas) @ deltas
    elected, largest = step[:n].sign(), torch.zeros_like(step[:n])
    for delta in deltas[:, :n]:
        torch.maximum(largest, delta * elected, out=largest)
    step[:n] = elected * largest
    return step
