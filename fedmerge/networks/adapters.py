"""Low-rank adapters: small factors beside a weight that stays as it is (Hu et al. 2021, "LoRA")."""

import torch
from torch import nn
from torch.nn.utils import parametrize


class LowRank(nn.Module):
    """A weight W [out, ...] plus (alpha / r) B A, of factors B [out, r] and A [r, in], in = what is left of W's shape.

    It begins as W: B is zero (Hu et al. 2021, section 4.1). Convolutions are taken for matrices in the same way.
    """

    def __init__(self, weight, rank, alpha):
        super().__init__()
        matrix = weight.flatten(1)
        rank = min(rank, *matrix.shape)
        self.a, self.b = nn.Parameter(torch.empty(rank, matrix.shape[1])), nn.Parameter(torch.zeros(len(matrix), rank))
        nn.init.kaiming_uniform_(self.a, a=5**0.5)
        self.scale = alpha / rank

    def forward(self, weight):
        return weight + self.scale * (self.b @ self.a).view_as(weight)


def merge_adapters(module):
    """Make of every weight with an adapter the plain weight that both amount to.

    torch's own way to take a parametrization off takes it off the copies of a module, too.
    """
    for layer in list(module.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            weight, others = layer.weight.detach(), dict(layer.named_parameters(recurse=False))
            layer.__class__ = type(layer).__bases__[0]
            for name in (*others, "parametrizations"):
                delattr(layer, name)
            for name, parameter in {"weight": nn.Parameter(weight), **others}.items():
                setattr(layer, name, parameter)
