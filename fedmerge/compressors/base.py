"""What of a client's update is sent, and what becomes of the rest."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedmerge.client_update import ClientUpdate
from fedmerge.component import Stateful
from fedmerge.compressors.error_feedback import ErrorFeedback
from fedmerge.compressors.largest import masked
from fedmerge.declared import described, mistake
from fedmerge.networks import Layout
from fedmerge.registry import compressor

if TYPE_CHECKING:
    from fedmerge.local_training.client import Client


@compressor("none", title="whole updates")
class Compressor(Stateful):
    """all of an update is sent

    What a compressor is: derive from it and say in `choose` which of the weights are sent. What is not sent is lost,
    or, with --residual client, kept by the client and added to its next update.
    """

    def __init__(self, layout: Layout, feedback: ErrorFeedback | None = None, **options):
        """layout: the model's networks.Layout; feedback: an ErrorFeedback, if what is not sent is kept."""
        super().__init__(**options)
        self.layout, self.feedback = layout, feedback

    def choose(self, change: Tensor, start: Tensor, client: "Client") -> Tensor | None:
        """Return which of a client's `change [n_trainable]` are sent, bool [n_trainable], or None for all.

        start [dim]: the model that the client trained; client: a local_training.Client.
        """

    def compress(self, delta: Tensor, start: Tensor, client: "Client") -> tuple[Tensor, Tensor | None]:
        """Return (delta [dim], mask): of a client's whole change what it sends, 0 elsewhere, and `choose`'s mask."""
        n = self.layout.n_trainable
        change = self.feedback.add(client.id, delta[:n]) if self.feedback else delta[:n]
        mask = self.choose(change, start, client)
        if mask is None:
            if self.feedback:
                delta[:n] = change
            return delta, None
        if getattr(mask, "dtype", None) != torch.bool or mask.shape != change.shape:
            raise mistake(self, f"choose returns no bool tensor [{n}], nor None, but {described(mask)}")
        return masked(change, mask, delta[n:], out=client.scratch), mask

    def acknowledge(self, client: "Client", decoded: ClientUpdate) -> None:
        """Hear which ClientUpdate of `client` the server decoded."""
        if self.feedback:
            self.feedback.sent(client.id, decoded.delta[: self.layout.n_trainable], decoded.mask)

    def of_clients(self) -> dict:
        return super().of_clients() | (self.feedback.of_clients() if self.feedback else {})

    def kept_length(self, name: str, layout: Layout) -> int | None:
        return layout.n_trainable if self.feedback and name in self.feedback.of_clients() else None
