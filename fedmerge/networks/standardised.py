"""Convolutions whose weights are standardised (Qiao et al. 2019, "Micro-batch training with batch-channel normalization
and weight standardization").
"""

import torch
from torch import nn

from fedmerge.errors import InputError

EPSILON = 1e-5  # that of the published code


class StandardisedConv2d(nn.Conv2d):
    """A convolution by weights of which those of each output have mean 0 and deviation 1.

    What is trained, sent and merged are the weights before that.
    """

    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, standardised(weight), bias)


def standardised(weight: torch.Tensor) -> torch.Tensor:
    """Return a kernel [out, in, k, k] less the mean of each output's weights, divided by their deviation (Eq. 9)."""
    deviation, mean = torch.std_mean(weight, (1, 2, 3), keepdim=True)
    return (weight - mean) / (deviation + EPSILON)


def standardise(module: nn.Module) -> None:
    """Let all convolutions of a module standardise their weights, but those of one weight an output.

    Raises InputError if there is none, or one that is not torch's own.
    """
    found = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.modules.conv._ConvNd)]
    for name, layer in found:
        if type(layer) is not nn.Conv2d:
            raise InputError(f"--weight_standardisation: the layer {name} is no plain convolution, which it needs")
        if layer.weight[0].numel() > 1:
            layer.__class__ = StandardisedConv2d
    if not any(isinstance(layer, StandardisedConv2d) for _, layer in found):
        raise InputError("--weight_standardisation: the network has no convolution")


@torch.no_grad()
def make_plain(module: nn.Module) -> None:
    """Make of every standardised convolution a plain one that does the same."""
    for layer in module.modules():
        if isinstance(layer, StandardisedConv2d):
            layer.weight.copy_(standardised(layer.weight))
            layer.__class__ = nn.Conv2d
