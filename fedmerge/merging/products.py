"""Low-rank adapters merged as the products of their factors, not factor by factor."""

import torch

from fedmerge.merging.aggregate import Aggregate
from fedmerge.networks import Layout


def merge_products(step: torch.Tensor, aggregate: Aggregate, theta: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Make the merged step [dim] of adapters that to the mean of the clients' products B A; return it.

    The mean of factors is not that of products. The mean of products has a higher rank, and is cut back to the best
    approximation of the adapter's own by its singular values (FlexLoRA, Bai et al. 2024); both factors get their roots.
    theta [dim] is the model that clients received; all else of the step stays. Adapters whose products are all zero,
    too: factors of zero would learn nothing more.
    """
    shares = aggregate.shares(theta)
    for begin, middle, end, rank in layout.adapters:
        a = (theta[begin:middle] + aggregate.deltas[:, begin:middle]).view(len(shares), rank, -1)
        b = (theta[middle:end] + aggregate.deltas[:, middle:end]).view(len(shares), -1, rank)
        left, right = _truncated(shares[:, None, None] * b, a, rank)
        if left.any():
            step[begin:middle] = right.flatten() - theta[begin:middle]
            step[middle:end] = left.flatten() - theta[middle:end]
    return step


def _truncated(b, a, rank):
    """Return factors [out, rank] and [rank, in] of the best approximation of the sum of b [n, out, r] @ a [n, r, in].

    The sum is a product of factors of n * r columns and rows: with those made orthogonal (QR), only a matrix of this
    size is decomposed, never one of out by in.
    """
    q, upper = torch.linalg.qr(torch.cat(list(b), 1))
    p, lower = torch.linalg.qr(torch.cat(list(a), 0).t())
    u, values, v = torch.linalg.svd(upper @ lower.t(), full_matrices=False)
    roots = values[:rank].sqrt()
    return q @ u[:, :rank] * roots, roots[:, None] * (v[:rank] @ p.t())
