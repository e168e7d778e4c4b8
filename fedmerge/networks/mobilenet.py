"""torchvision's MobileNetV3, for small images."""

from torch import nn

from fedmerge.networks.norms import norm_layer
from fedmerge.networks.weights import for_channels
from fedmerge.registry import network


def stem_of_colours(weights, module):
    """Return the published weights {name: tensor} with kernels for the module's number of channels."""
    name = "features.0.0.weight"
    return {**weights, name: for_channels(weights[name], module.features[0][0].in_channels)}


@network(
    "mobilenet_v3_small",
    pretrained="https://download.pytorch.org/models/mobilenet_v3_small-047dcff4.pth",
    fit=stem_of_colours,
)
def mobilenet_v3_small(channels, image_size, n_classes, norm):
    """torchvision's MobileNetV3-Small, whose stem keeps the size of small images; with dropout (Howard et al. 2019)"""
    import torchvision

    layer = norm_layer(norm) if norm == "group" else None  # torchvision's own BatchNorm has another epsilon
    model = torchvision.models.mobilenet_v3_small(num_classes=n_classes, norm_layer=layer)
    model.features[0][0] = nn.Conv2d(channels, 16, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(model.features[0][0].weight, mode="fan_out")
    return model
