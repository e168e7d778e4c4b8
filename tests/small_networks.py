"""Networks of few weights, for tests: a plugin, as --plugin takes them."""

from torch import nn

from fedmerge.networks.norms import norm_layer
from fedmerge.registry import network


@network("tiny", norms=("none", "batch"))
def tiny(channels, image_size, n_classes, norm):
    """eight hidden units"""
    layer = nn.BatchNorm1d(8) if norm == "batch" else nn.Identity()
    return nn.Sequential(
        nn.Flatten(), nn.Linear(channels * image_size**2, 8), layer, nn.ReLU(), nn.Linear(8, n_classes)
    )


@network("small", norms=("none", "batch", "group"))
def small(channels, image_size, n_classes, norm):
    """a convolution, a norm and two linear layers: a step takes an eighth of the CNN's"""
    return nn.Sequential(
        *(nn.Conv2d(channels, 8, 3, padding=1), norm_layer(norm)(8), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(8 * (image_size // 2) ** 2, 32), nn.ReLU(), nn.Linear(32, n_classes)),
    )


@network("line", norms=("none",))
def line(channels, image_size, n_classes, norm):
    """a single layer"""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, n_classes))
