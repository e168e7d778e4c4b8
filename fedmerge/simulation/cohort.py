"""The clients of one round, and what they sent."""

from dataclasses import dataclass, field

import torch

from fedmerge import merging


@dataclass(frozen=True)
class Sent:
    """What is to be known of a client that trained and sent `bytes` of an update.

    loss, hits: sums over the `seen` samples; total: the sum of the update, which is not finite if an entry is not;
    kept: how many weights it sent. These are scalar tensors, so that no GPU is waited for.
    """

    number: int
    n_samples: int
    bytes: int
    seen: int
    loss: torch.Tensor
    hits: torch.Tensor
    total: torch.Tensor
    kept: object  # or a number
    masked: bool = False  # whether it chose what to send

    def plain(self):
        """Return {name: number}, to be sent; `Sent.of` undoes it."""
        return {name: value.item() if torch.is_tensor(value) else value for name, value in vars(self).items()}

    @classmethod
    def of(cls, plain, device):
        """Return the Sent that became `plain`."""
        tensors = {name: torch.tensor(plain[name], device=device) for name in ("loss", "hits", "total")}
        return cls(**plain | tensors)

    def finite(self):
        """Return whether its loss and its update are finite, a bool scalar tensor."""
        return self.total.isfinite() & self.loss.isfinite()


@dataclass
class Cohort:
    """The clients of one round, those with the most samples first: `done` have sent, `lost` ones never will.

    What they sent is in `sums`, or, for a merge that needs all of it at once, in the first rows of deltas and masks.
    """

    numbers: list
    lost: list
    sums: merging.Sums
    deltas: torch.Tensor = None  # [clients, dim]
    masks: torch.Tensor = None  # bool [clients, n_trainable], if any sends less than all
    down: dict = field(default_factory=dict)  # client -> bytes
    done: list = field(default_factory=list)  # of Sent
    seconds: float = 0.0  # that it took so far

    def progress(self):
        """Return in words how far it is."""
        return f"client {len(self.done)} of {len(self.numbers)}"

    def state(self):
        """Return {name: tensors and plain values}, for a checkpoint."""
        n = len(self.done)
        return {
            "sums": {name: total.clone() for name, total in self.sums.totals.items()},
            "deltas": None if self.deltas is None else self.deltas[:n].clone(),
            "masks": None if self.masks is None else self.masks[:n].clone(),
            "down": dict(self.down),
            "done": [vars(client) for client in self.done],
            "seconds": self.seconds,
        }

    def load(self, state):
        """Take back what `state()` returned."""
        n = len(state["done"])
        self.sums.totals = dict(state["sums"])
        if state["deltas"] is not None:
            self.deltas[:n] = state["deltas"]
        if state["masks"] is not None:
            self.mask_rows(state["masks"])[:n] = state["masks"]
        self.down, self.done = dict(state["down"]), [Sent(**client) for client in state["done"]]
        self.seconds = state["seconds"]

    def mask_rows(self, like):
        """Return `masks`, all true at first, on the device of `like [n_trainable]`, or of several."""
        if self.masks is None:
            size = len(self.numbers), like.shape[-1]
            self.masks = torch.ones(size, dtype=torch.bool, device=like.device)
        return self.masks

    def take(self, client, update, weight):
        """Take what the next client sent: its Sent and its Update, which has this weight in the merge."""
        if self.deltas is None:
            self._add(client, update, weight)
        elif update.mask is not None:
            self.mask_rows(update.mask)[len(self.done)] = update.mask
        self.done.append(client)

    def _add(self, client, update, weight):
        """Add an Update to the sums, unless it or the client's loss is not finite."""
        finite = client.finite()
        if finite.device.type != "cpu":
            self.sums.add(update, weight, counts=finite)
        elif finite:
            self.sums.add(update, weight)
