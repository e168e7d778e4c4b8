"""Singular vectors, of which several merging rules make use."""

import torch


def present(values: torch.Tensor, shape) -> torch.Tensor:
    """Return, as bools, which singular values [..., k] of matrices of that shape are not 0 but for rounding.

    The largest come first.
    """
    return values > values[..., :1] * max(shape[-2:]) * torch.finfo(values.dtype).eps


def orthogonal(columns: torch.Tensor) -> torch.Tensor:
    """Return the matrix with orthonormal columns that is nearest to `columns [rows, k]` (the polar factor).

    Where these are not independent, up to rounding, it spans what they span.
    """
    u, values, v = torch.linalg.svd(columns, full_matrices=False)
    there = present(values, columns.shape)
    return u[:, there] @ v[there]
