"""Normalisation layers by their name."""

from torch import nn


def norm_layer(norm):
    """Return the function channels -> layer for `norm`."""
    if norm == "group":
        return lambda channels: nn.GroupNorm(_groups(channels), channels)
    return {"batch": nn.BatchNorm2d, "none": lambda channels: nn.Identity()}[norm]


def _groups(channels):
    """Return the most groups that divide the channels evenly: at most the 32 of Wu and He 2018, 4 channels in each."""
    return max(n for n in range(1, max(1, min(32, channels // 4)) + 1) if channels % n == 0)
