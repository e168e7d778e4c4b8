"""Normalisation layers by their name."""

from torch import nn

WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)  # layers that mix features, and may have adapters


def is_norm(layer):
    """Tell whether a layer normalises: its class is called so, as those of torch are and those of timm and others.

    None is a linear or convolutional layer whose weights are normalised, what normalises these, and a block of layers.
    """
    kind = type(layer)
    if (
        "norm" not in kind.__name__.lower()
        or kind.__module__.startswith("torch.nn.utils")
        or isinstance(layer, WEIGHTED)
    ):
        return False
    return not any(True for child in layer.children() for _ in child.parameters())


def norm_layer(norm):
    """Return the function channels -> layer for `norm`."""
    if norm == "group":
        return lambda channels: nn.GroupNorm(_groups(channels), channels)
    return {"batch": nn.BatchNorm2d, "none": lambda channels: nn.Identity()}[norm]


def _groups(channels):
    """Return the most groups that divide the channels evenly: at most the 32 of Wu and He 2018, 4 channels in each."""
    return max(n for n in range(1, max(1, min(32, channels // 4)) + 1) if channels % n == 0)
