"""What arrives at the server in a round, as it is merged.

Most merges need no more than means over the clients, of their updates or of their masks. Those are added up client by
client, so that no update is kept: a round takes the memory of one, however many clients it has. The order of the
clients is that of the sums, so that these are the same to the last bit wherever and whenever clients trained.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from fedmerge.compressors.largest import CHUNK
from fedmerge.declared import described, mistake
from fedmerge.randomness import generator
from fedmerge.registry import MERGING_RULES

STATISTICS = {}  # name -> Statistic


class Statistic(NamedTuple):
    """Something of each update, a vector, of which a merge needs the mean over the clients."""

    of: Callable  # (ClientUpdate, begin, end) -> that stretch of the vector, numbers or bools
    weighted: bool  # by the clients' weights; else each client counts alike
    whole: bool  # whether the vector has all of the model, [dim], or its weights only, [n_trainable]

    def stretch(self, update, begin: int, end: int) -> torch.Tensor:
        """Return that stretch [end - begin] of a ClientUpdate's vector. Raises InputError if it is another."""
        value = self.of(update, begin, end)
        if not torch.is_tensor(value) or value.shape != (end - begin,):
            raise mistake(self.of, f"the statistic is {described(value)}, not a vector [{end - begin}]")
        return value


def statistic(name: str, weighted: bool = True, whole: bool = False):
    """Decorator of a function (ClientUpdate, begin, end) -> a stretch of a vector: merges may ask for its mean."""

    def add(of):
        known = STATISTICS[name].of if name in STATISTICS else of
        if known.__code__.co_filename != of.__code__.co_filename:
            raise mistake(of, f"the statistic {name} is there already, in {known.__module__}")
        if known is not of and known.__globals__ is of.__globals__:  # and not the file as it was before, or elsewhere
            raise mistake(of, f"the statistic {name} is there already: {known.__qualname__}")
        STATISTICS[name] = Statistic(of, weighted, whole)
        return of

    return add


def find_statistics(names, uploads: tuple = (), owner=None) -> dict[str, Statistic]:
    """Return {name: Statistic}; what is named in `uploads`, vectors that clients send besides, are statistics, too.

    owner: the component that needs them. Raises InputError for a name of neither, or of both.
    """
    for name in (*names, *uploads):
        if name not in STATISTICS and name not in uploads:
            list(MERGING_RULES.values())  # imports them all: it may be that of another rule's file
        if name in STATISTICS and name in uploads:
            raise mistake(owner, f"uploads has {name}, which is a statistic already: another name")
        if name not in STATISTICS and name not in uploads:
            known = ", ".join([*STATISTICS, *uploads])
            raise mistake(owner, f"needs {name!r}, which is no statistic, nor sent: {known}")
    sent = {name: Statistic(lambda u, begin, end, n=name: u.more[n][begin:end], False, False) for name in uploads}
    known = STATISTICS | sent
    return {name: known[name] for name in dict.fromkeys(names)}


@statistic("update", whole=True)
def _delta(update, begin, end):
    return update.delta[begin:end]


@statistic("mask")
def _mask(update, begin, end):
    """Whether a weight was sent; the mean is the share of the clients' weight that sent it."""
    return torch.ones_like(update.delta[begin:end]) if update.mask is None else update.mask[begin:end]


class Arrival(NamedTuple):
    """A client whose update is merged."""

    client_id: int
    n_samples: int
    n_steps: int  # that it took
    weight: float  # in the merge; only their ratios matter


@dataclass
class Aggregate:
    """What a merge works with; it may use up the tensors."""

    arrived: list[Arrival]
    mean: dict = field(default_factory=dict)  # {name: vector} of the statistics that were asked for
    deltas: torch.Tensor = None  # [clients, dim], zero where nothing was kept, if all updates were asked for
    masks: torch.Tensor = None  # bool [clients, n_trainable], likewise; None if all weights were sent
    more: dict = field(default_factory=dict)  # {name: [clients, k]}, likewise, of what clients sent besides
    round: int = 1
    n_clients: int = 1  # of the run, that have samples
    seed: int = 0

    def uniform(self, client: Arrival, n: int, like: torch.Tensor) -> torch.Tensor:
        """Return n random numbers in [0, 1) on the device of a tensor, a client's own in each round."""
        return torch.rand(n, generator=generator(self.seed, "merge", self.round, client.client_id)).to(like.device)

    @property
    def share_of_clients(self) -> float:
        """Of all clients of the run that have samples, the share that arrived."""
        return len(self.arrived) / self.n_clients

    def shares(self, like: torch.Tensor) -> torch.Tensor:
        """Return the clients' weights [clients] as a tensor like another; they sum to 1."""
        p = torch.tensor([float(one.weight) for one in self.arrived], device=like.device, dtype=like.dtype)
        return p / p.sum()


class WeightedSums:
    """Sums over clients of {name: Statistic}; `totals` {name: vector}, in float32."""

    def __init__(self, statistics, layout):
        self.statistics, self.layout, self.totals = statistics, layout, {}

    def size(self, name):
        """Return the length of the vector of that name."""
        return self.layout.dim if self.statistics[name].whole else self.layout.n_trainable

    def add(self, update, weight, counts=None):
        """Add a ClientUpdate with a weight, a number. counts: a bool scalar tensor; if it is false, add nothing."""
        for name, statistic in self.statistics.items():
            value = statistic.stretch(update, 0, self.size(name))
            if counts is not None:
                value = torch.where(counts, value, torch.zeros_like(value))
            add_to(self.total(name, update.delta), value, weight if statistic.weighted else 1)

    def total(self, name, like):
        """Return the sum so far; it begins with zeros of the kind of the tensor `like`."""
        if name not in self.totals:
            self.totals[name] = like.new_zeros(self.size(name))
        return self.totals[name]

    def means(self, weight, n_clients):
        """Return {name: vector} of the means over clients of this `weight` together. Ends the sums."""
        totals = {name: weight if statistic.weighted else n_clients for name, statistic in self.statistics.items()}
        return {name: self.totals.pop(name).div_(total) for name, total in totals.items()}


def add_to(total: torch.Tensor, value: torch.Tensor, weight: float) -> None:
    """Add weight times `value [k]`, numbers or bools, to `total [k]`."""
    parts = [(total, value)]
    if value.dtype == torch.bool and value.device.type == "cpu":  # numbers are made of it, and should stay in the cache
        parts = zip(total.split(CHUNK), value.split(CHUNK), strict=True)
    for into, part in parts:
        into.add_(part, alpha=float(weight))
