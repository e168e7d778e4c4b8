"""Updates' main directions side by side, made orthogonal."""

import torch

from fedmerge.merging.directions import orthogonal, present
from fedmerge.registry import merging_rule


@merging_rule(
    "tsv_m",
    title="TSV-M",
    paper="Gargiulo et al. 2025",
    needs="all updates",
    weighted=True,
    options={"tsv_scale": (1.0, "positive", "alpha: what the merged matrices are multiplied by")},
)
def tsv_m(aggregate, layout, tsv_scale):
    """of each client's matrix the main singular vectors, orthogonalised over clients (Gargiulo et al. 2025, section 4)

    Of n clients, each has an n-th of the rank; orthogonal updates are added up, equal ones count once. A kernel is a
    matrix of out x in * k * k; vectors and buffers are averaged.

    Differs from the paper: a client's singular values are multiplied by its weight, 1 on average.
    """
    deltas, n = aggregate.deltas, len(aggregate.deltas)
    shares = aggregate.shares(deltas)
    step = shares @ deltas
    for merged, *of_clients in zip(layout.matrices(step), *map(layout.matrices, deltas), strict=True):
        u, values, v = torch.linalg.svd(torch.stack(of_clients), full_matrices=False)
        values = values * present(values, merged.shape)
        k = max(1, values.shape[1] // n)
        values, u, v = values[:, :k], u[:, :, :k], v[:, :k]
        there = values > 0  # a client has no part in a matrix that it did not change
        left = orthogonal(u.mT[there].mT)
        right = orthogonal(v[there].mT)
        scale = (tsv_scale * n * shares[:, None] * values)[there]
        merged.copy_(left * scale @ right.mT)
    return step
