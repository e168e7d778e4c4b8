"""What one client sends."""

from typing import NamedTuple

from torch import Tensor


class Update(NamedTuple):
    """What one client sends."""

    delta: Tensor  # [dim], trained minus received; 0 where the mask is unset
    mask: Tensor | None = None  # bool [n_trainable], the weights that are sent; None = all
