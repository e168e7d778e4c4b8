"""The mean, with as much of it in every direction that it has."""

import torch

from fedmerge.merging.directions import present
from fedmerge.registry import merging_rule


@merging_rule(
    "iso_c",
    title="Iso-C",
    paper="Marczak et al. 2025",
    needs=("update",),
    weighted=True,
    options={"iso_scale": (1.0, "positive", "alpha: what the merged matrices are multiplied by")},
)
def iso_c(aggregate, layout, iso_scale):
    """the mean, each matrix with all its singular values made equal: to their mean (Marczak et al. 2025, section 4.1)

    A kernel is a matrix of out x in * k * k; vectors and buffers are averaged. Directions in which nothing moved, up to
    the step's own rounding, stay still and do not count; in a step that is tiny beside the weights, theirs counts.

    Differs from the paper: the mean, not the sum, is scaled, so that alpha does not depend on the number of clients.
    """
    step = aggregate.mean["update"]
    for matrix in layout.matrices(step):
        u, values, v = torch.linalg.svd(matrix, full_matrices=False)
        there = present(values, matrix.shape)
        level = iso_scale * values[there].mean() if there.any() else 0.0
        matrix.copy_(u[:, there] @ v[there] * level)
    return step
