"""A network of few weights, for tests: a plugin, as --plugin takes them."""

from torch import nn

from fedmerge.registry import network


@network("tiny", norms=("none", "batch"))
def tiny(channels, image_size, n_classes, norm):
    """eight hidden units"""
    layer = nn.BatchNorm1d(8) if norm == "batch" else nn.Identity()
    return nn.Sequential(
        nn.Flatten(), nn.Linear(channels * image_size**2, 8), layer, nn.ReLU(), nn.Linear(8, n_classes)
    )
