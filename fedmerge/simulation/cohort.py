"""The clients of one round, and what they sent."""

import math
from dataclasses import dataclass, field

import torch

from fedmerge import merging
from fedmerge.client_update import ClientResult


@dataclass
class Cohort:
    """The clients of one round, those with the most samples first: `done` have sent, `lost` ones never will.

    What they sent is in `sums`, or, for a merge that needs all of it at once, in the first of the rows and masks.
    """

    round: int  # from 1
    ids: list
    lost: list
    sums: merging.WeightedSums
    rows: torch.Tensor = None  # [clients, upload_dim]
    masks: torch.Tensor = None  # bool [clients, n_trainable], if any sends less than all
    down: dict = field(default_factory=dict)  # client -> bytes
    done: list = field(default_factory=list)  # of ClientResult
    seconds: float = 0.0  # that it took so far

    def progress(self):
        """Return in words how far it is."""
        return f"client {len(self.done)} of {len(self.ids)}"

    def state_dict(self):
        """Return {name: tensors and plain values}, for a checkpoint."""
        n = len(self.done)
        return {
            "sums": {name: total.clone() for name, total in self.sums.totals.items()},
            "rows": None if self.rows is None else self.rows[:n].clone(),
            "masks": None if self.masks is None else self.masks[:n].clone(),
            "down": dict(self.down),
            "done": [vars(result) for result in self.done],
            "seconds": self.seconds,
        }

    def load_state_dict(self, state):
        """Take back what `state_dict()` returned."""
        n = len(state["done"])
        self.sums.totals = dict(state["sums"])
        if state["rows"] is not None:
            self.rows[:n] = state["rows"]
        if state["masks"] is not None:
            self.mask_rows(state["masks"])[:n] = state["masks"]
        self.down, self.done = dict(state["down"]), [ClientResult(**result) for result in state["done"]]
        self.seconds = state["seconds"]

    def mask_rows(self, like):
        """Return `masks`, all true at first, on the device of `like [n_trainable]`, or of several."""
        if self.masks is None:
            size = len(self.ids), like.shape[-1]
            self.masks = torch.ones(size, dtype=torch.bool, device=like.device)
        return self.masks

    def masks_of(self, places):
        """Return the masks [clients, n_trainable] at the places, None if all weights were sent."""
        return None if self.masks is None else self.masks[places]

    def mask_of(self, place):
        """Return the mask [n_trainable] of one that has sent, None if it sent all weights."""
        return self.masks[place] if self.masks is not None and self.done[place].masked else None

    def take(self, result, update, weight):
        """Take what the next client sent: its ClientResult and its ClientUpdate, which has this weight in the merge."""
        if self.rows is None:
            self._add(result, update, weight)
        elif update.mask is not None:
            self.mask_rows(update.mask)[len(self.done)] = update.mask
        self.done.append(result)

    def _add(self, result, update, weight):
        """Add an update to the sums, unless it or the client's loss is not finite."""
        finite = result.finite()
        if finite.device.type != "cpu":
            self.sums.add(update, weight, counts=finite)
        elif finite:
            self.sums.add(update, weight)

    def faults(self):
        """Return the losses and hits of `done`, float32 [clients, 2], and {place: what is not finite}.

        All figures of them are read from the device here, at once.
        """
        if not self.done:
            return torch.zeros(0, 2), {}
        figures = torch.stack([torch.stack([r.loss, r.hits, r.total]) for r in self.done]).cpu()
        faults = {}
        for i, (result, (loss, _, total)) in enumerate(zip(self.done, figures.tolist(), strict=True)):
            for what, value in (("update", total), ("loss", loss)):
                if not math.isfinite(value):
                    faults[i] = f"round {self.round}, client {result.client_id}: the {what} is not finite"
        return figures[:, :2], faults
