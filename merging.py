"""What arrives at the server in a round, as algorithms merge it.

Most merges need no more than weighted means over the clients, of their updates or of their masks. Those are added up
client by client, so that no update is kept: a round takes the memory of one, however many clients it has. The order of
the clients is that of the sums, so that these are the same to the last bit wherever and whenever clients trained.
"""

from dataclasses import dataclass, field

import torch

# What an algorithm can ask for the mean of: name -> (Update, n_trainable) -> vector; None stands for ones.
MEANS = {
    "update": lambda update, n: update.delta,  # [dim]
    "mask": lambda update, n: update.mask,  # [n_trainable], so that the mean is the share of the clients that kept it
    "sign": lambda update, n: update.delta[:n].sign(),  # [n_trainable]
}


@dataclass
class Arrived:
    """What a merge works with: `mean[name]` of each of MEANS that it asked for, or, if of none, all updates."""

    mean: dict = field(default_factory=dict)
    p: torch.Tensor = None  # [clients], weights that sum to 1
    deltas: torch.Tensor = None  # [clients, dim], zero where nothing was kept
    masks: torch.Tensor = None  # bool [clients, n_trainable]; None if all weights were sent


class Sums:
    """Sums over clients, times their weights, of what `names` of MEANS say; `totals` {name: vector}, in float32."""

    def __init__(self, names, n_trainable):
        self.names, self.n, self.totals = names, n_trainable, {}

    def add(self, update, weight, counts=None):
        """Add an Update with a weight, a number. counts: a bool scalar tensor; if it is false, add nothing."""
        for name in self.names:
            value = MEANS[name](update, self.n)
            if value is None:
                value = torch.ones_like(update.delta[: self.n])
            self.totals[name] = added(self.totals.get(name), value, weight, counts)

    def means(self, weight):
        """Return {name: vector} of the means; `weight` is that of all clients together. Ends the sums."""
        return {name: self.totals.pop(name).div_(weight) for name in self.names}


def added(total, value, weight, counts=None):
    """Return `total [k]`, None before the first, plus weight times `value [k]`; works in place where it can."""
    if counts is not None:
        value = torch.where(counts, value, torch.zeros_like(value))
    if total is None:
        return value * float(weight)
    if value.dtype == torch.bool:
        value = value.to(total.dtype)
    return total.add_(value, alpha=float(weight))


def all_of(deltas, masks, weights):
    """Return the Arrived with all updates, deltas [clients, dim], of clients with these weights."""
    p = torch.tensor([float(weight) for weight in weights], device=deltas.device, dtype=deltas.dtype)
    return Arrived(p=p / p.sum(), deltas=deltas, masks=masks)
