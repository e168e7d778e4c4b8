"""The small CNN of NIID-Bench."""

from torch import nn

from fedmerge.errors import InputError
from fedmerge.networks.norms import norm_layer
from fedmerge.registry import network


@network("lenet", norms=("none", "batch", "group"))
def lenet(channels, image_size, n_classes, norm):
    """two 5x5 convolutions (6, 16 channels) without padding, each pooled, 120 and 84 hidden units (Li et al. 2022)

    It is NIID-Bench's SimpleCNN, after LeNet-5 (LeCun et al. 1998). Raises InputError for images of under 16 pixels.
    """
    side = ((image_size - 4) // 2 - 4) // 2
    if side < 1:
        raise InputError(f"--model_name lenet needs images of 16 pixels, not {image_size}: --image_size 16 or more")
    layer = norm_layer(norm)
    return nn.Sequential(
        *(nn.Conv2d(channels, 6, 5), layer(6), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), layer(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(16 * side**2, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()),
        nn.Linear(84, n_classes),
    )
