"""What arrives at the server in a round, as algorithms merge it.

Most merges need no more than weighted means over the clients, of their updates or of their masks. Those are added up
client by client, so that no update is kept: a round takes the memory of one, however many clients it has. The order of
the clients is that of the sums, so that these are the same to the last bit wherever and whenever clients trained.
"""

from dataclasses import dataclass, field

import torch

from fedmerge.compressors.largest import CHUNK

# What an algorithm can ask for the mean of: name -> (Update, begin, end) -> that stretch of the vector.
MEANS = {
    "update": lambda update, begin, end: update.delta[begin:end],  # of [dim]
    "mask": lambda update, begin, end: _mask(update, begin, end),  # of [n_trainable]: the share of those that kept it
    "sign": lambda update, begin, end: update.delta[begin:end].sign(),  # of [n_trainable]
}


def _mask(update, begin, end):
    return torch.ones_like(update.delta[begin:end]) if update.mask is None else update.mask[begin:end]


@dataclass
class Arrived:
    """What a merge works with: `mean[name]` of each of MEANS that it asked for, or, if of none, all updates."""

    mean: dict = field(default_factory=dict)
    p: torch.Tensor = None  # [clients], weights that sum to 1
    deltas: torch.Tensor = None  # [clients, dim], zero where nothing was kept
    masks: torch.Tensor = None  # bool [clients, n_trainable]; None if all weights were sent


class Sums:
    """Sums over clients, times their weights, of what `names` of MEANS say; `totals` {name: vector}, in float32."""

    def __init__(self, names, layout):
        self.names, self.layout, self.totals = names, layout, {}

    def size(self, name):
        """Return the length of the vector of that name."""
        return self.layout.dim if name == "update" else self.layout.n_trainable

    def add(self, update, weight, counts=None):
        """Add an Update with a weight, a number. counts: a bool scalar tensor; if it is false, add nothing."""
        for name in self.names:
            value = MEANS[name](update, 0, self.size(name))
            if counts is not None:
                value = torch.where(counts, value, torch.zeros_like(value))
            add_to(self.total(name, update.delta), value, weight)

    def total(self, name, like):
        """Return the sum so far; it begins with zeros of the kind of the tensor `like`."""
        if name not in self.totals:
            self.totals[name] = like.new_zeros(self.size(name))
        return self.totals[name]

    def means(self, weight):
        """Return {name: vector} of the means; `weight` is that of all clients together. Ends the sums."""
        return {name: self.totals.pop(name).div_(weight) for name in self.names}


def add_to(total, value, weight):
    """Add weight times `value [k]`, numbers or bools, to `total [k]`."""
    parts = [(total, value)]
    if value.dtype == torch.bool and value.device.type == "cpu":  # numbers are made of it, and should stay in the cache
        parts = zip(total.split(CHUNK), value.split(CHUNK), strict=True)
    for into, part in parts:
        into.add_(part, alpha=float(weight))


def all_of(deltas, masks, weights):
    """Return the Arrived with all updates, deltas [clients, dim], of clients with these weights."""
    p = torch.tensor([float(weight) for weight in weights], device=deltas.device, dtype=deltas.dtype)
    return Arrived(p=p / p.sum(), deltas=deltas, masks=masks)
