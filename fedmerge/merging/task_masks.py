"""Which weights of a common vector of changes serve one client: TALL masks and EMR's, with which rules merge and with
which a client's personal model is made of the shared one.

Vectors are [n_trainable]: how far a client's model, `own`, or the shared one, `common`, is from where all began.
"""

import torch


def tall_mask(own: torch.Tensor, common: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return where the common change is nearer to the client's than no change is: |own| >= threshold |common - own|.

    bool [n_trainable] (TALL masks, Wang et al. 2024). A weight that the client did not move is its own only where the
    common vector did not move it, either.
    """
    return own.abs() >= threshold * (common - own).abs()


def same_direction(own: torch.Tensor, common: torch.Tensor) -> torch.Tensor:
    """Return where both change a weight in the same direction, bool [n_trainable] (Huang et al. 2024)."""
    return own.sign() * common.sign() > 0


def rescaler(own: torch.Tensor, common: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return by what the masked common vector is as long as the client's, a scalar (Huang et al. 2024).

    Lengths are sums of magnitudes; it is 0 where nothing of the common vector is left.
    """
    left = (common.abs() * mask).sum()
    return torch.where(left > 0, own.abs().sum() / left, 0)
