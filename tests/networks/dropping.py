"""A network that draws as it trains, for the tests: a plugin."""

import torch
from torch import nn

from fedmerge.registry import network


class StochasticDepth(nn.Module):
    """torchvision's, of rows, which takes seconds to import."""

    def forward(self, x):
        return x * torch.empty(len(x), 1).bernoulli_(0.7).to(x) / 0.7 if self.training else x


class Residual(nn.Module):
    """Stochastic depth as a layer, dropout as a function: nothing that a search through the modules would find."""

    def __init__(self, width):
        super().__init__()
        self.inner, self.depth = nn.Linear(width, width), StochasticDepth()

    def forward(self, x):
        return x + self.depth(nn.functional.dropout(self.inner(x).relu(), 0.4, self.training))


@network("dropping", norms=("none", "batch"))
def dropping(channels, image_size, n_classes, norm):
    """a small network with both kinds of draws"""
    layer = nn.BatchNorm1d(32) if norm == "batch" else nn.Identity()
    inputs = nn.Linear(channels * image_size**2, 32)
    return nn.Sequential(nn.Flatten(), inputs, layer, Residual(32), nn.Linear(32, n_classes))
