"""The small CNN of the FedAvg paper."""

from torch import nn

from fedmerge.errors import InputError
from fedmerge.networks.norms import norm_layer
from fedmerge.registry import network


@network("cnn", norms=("none", "batch", "group"))
def cnn(channels, image_size, n_classes, norm):
    """two 5x5 convolutions (32, 64 channels), each pooled, and 512 hidden units (McMahan et al. 2017, section 3)

    Raises InputError for images of under 4 pixels.
    """
    if image_size < 4:
        raise InputError(f"--model_name cnn needs images of 4 pixels, not {image_size}: --image_size 4 or more")
    layer = norm_layer(norm)
    return nn.Sequential(
        *(nn.Conv2d(channels, 32, 5, padding=2), layer(32), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(32, 64, 5, padding=2), layer(64), nn.MaxPool2d(2), nn.ReLU()),
        nn.Flatten(),
        *(nn.Linear(64 * (image_size // 4) ** 2, 512), nn.ReLU(), nn.Linear(512, n_classes)),
    )
