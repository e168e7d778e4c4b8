"""torchvision's ResNets, for small images."""

from torch import nn

from fedmerge.networks.norms import norm_layer
from fedmerge.networks.weights import for_channels
from fedmerge.registry import network


def _resnet(name, channels, n_classes, norm):
    """torchvision's ResNet with a 3x3 stride-1 stem and no max-pool, for images of 32 and 64 pixels."""
    import torchvision

    model = getattr(torchvision.models, name)(num_classes=n_classes, norm_layer=norm_layer(norm))
    model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


def centre_of_stem(weights, module):
    """Return the published weights {name: tensor} with the centre of the 7x7 kernels for the 3x3 stem."""
    stem = weights["conv1.weight"][:, :, 2:5, 2:5]
    return {**weights, "conv1.weight": for_channels(stem, module.conv1.in_channels)}


@network("resnet18", pretrained="https://download.pytorch.org/models/resnet18-f37072fd.pth", fit=centre_of_stem)
def resnet18(channels, image_size, n_classes, norm):
    """torchvision's ResNet-18 with a stem for small images (He et al. 2016)"""
    return _resnet("resnet18", channels, n_classes, norm)


@network("resnet50", pretrained="https://download.pytorch.org/models/resnet50-0676ba61.pth", fit=centre_of_stem)
def resnet50(channels, image_size, n_classes, norm):
    """torchvision's ResNet-50 with a stem for small images (He et al. 2016)"""
    return _resnet("resnet50", channels, n_classes, norm)
