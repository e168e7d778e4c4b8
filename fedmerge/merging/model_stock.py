"""The mean, the shorter the more updates differ in direction."""

import torch

from fedmerge.registry import merging_rule


@merging_rule("model_stock", title="Model Stock", paper="Jang et al. 2024", needs="all updates", weighted=True)
def model_stock(aggregate, layout):
    """the mean, in each layer as long as the angles between the updates say (Jang et al. 2024, section 4)

    By t = n cos / (1 + (n - 1) cos), with the mean of the cosines between the updates of n clients: 1 where all agree,
    0 where they are orthogonal or against each other. Buffers are averaged whole.

    Differs from the paper: the mean is by the clients' weights.
    """
    deltas, n = aggregate.deltas, len(aggregate.deltas)
    step = aggregate.shares(deltas) @ deltas
    if n > 1:
        weights = slice(layout.n_trainable)
        for part, merged in zip(
            deltas[:, weights].split(layout.sizes, 1), step[weights].split(layout.sizes), strict=True
        ):
            directions = torch.nn.functional.normalize(part, dim=1, eps=1e-30)
            cos = (directions.sum(0).square().sum() - directions.square().sum()) / (n * (n - 1))
            cos = cos.clamp_min(0)
            merged *= n * cos / (1 + (n - 1) * cos)
    return step
