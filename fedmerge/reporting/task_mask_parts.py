"""Personal parts that are masks: where the way from the initial model to the shared one serves a client.

A client's model is the initial one plus that way, masked, and for EMR made longer or shorter by one number.
"""

import torch

from fedmerge.client_update import ClientUpdate
from fedmerge.errors import InputError
from fedmerge.merging.task_masks import rescaler, same_direction, tall_mask


class TaskMasks:
    """Makes parts of masks. start [dim]: the model with which the run began; kind: tall or emr; threshold: of tall."""

    bits = 0  # of a value in a message: positions say all

    def __init__(self, start, kind, threshold):
        self.start, self.kind, self.threshold = start, kind, threshold

    def part(self, full, shared, n):
        """Return the ClientUpdate that holds the mask of a client with the model `full [dim]`, and its own buffers.

        shared [dim]: the model that all have; n: how many of its numbers are weights. What is kept has one value: by
        how much the shared way is gone.
        """
        own, common = full[:n] - self.start[:n], shared[:n] - self.start[:n]
        if self.kind == "tall":
            mask, scale = tall_mask(own, common, self.threshold), 1.0
        else:
            mask = same_direction(own, common)
            scale = rescaler(own, common, mask)
        return ClientUpdate(torch.cat([mask * scale, full[n:] - shared[n:]]), mask)


def with_part(shared, message, start=None):
    """Return a client's model [dim] from the shared one [dim] and the Message of its part.

    start [dim]: the model with which the run began, if parts are masks. Raises InputError if the part is of the other
    kind.
    """
    if (message.weights.bits == TaskMasks.bits) != (start is not None):
        raise InputError(f"the part of client {message.client} is of another kind than clients.json says")
    part, n = message.unpack(torch.empty_like(shared)), message.n_trainable
    if start is not None:
        part[:n] = start[:n] + part[:n] * (shared[:n] - start[:n]) - shared[:n]
    return shared + part
