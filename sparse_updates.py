"""What sparse updates are made with: which weights are kept, what becomes of the others, how the parts are stitched."""

import torch


class ErrorFeedback:
    """What each client did not send, to be added to its next update (Seide et al. 2014; Stich et al. 2018).

    With a momentum, what is added up are the client's velocities, and the velocity of what was sent is forgotten (Lin
    et al. 2018, sections 3.1 and 3.2). Vectors are [n_trainable]; a client that is not sampled keeps its own.
    """

    def __init__(self, momentum=0.0):
        self.momentum = momentum
        self.left, self.velocity = {}, {}  # client -> vector

    def add(self, number, change):
        """Return what client `number` has to send, its newest `change` included."""
        if self.momentum:
            change = change + self.momentum * self.velocity.get(number, 0)
            self.velocity[number] = change
        self.left[number] = change + self.left.get(number, 0)
        return self.left[number]

    def sent(self, number, arrived, mask):
        """Take off what `arrived` of it, 0 where the `mask` is unset."""
        self.left[number] = self.left[number] - arrived
        if self.momentum:
            self.velocity[number] = torch.zeros_like(arrived) if mask is None else self.velocity[number] * ~mask

    def held(self):
        """Return {kind: {client: vector}}."""
        return {"left": self.left, "update_velocity": self.velocity}


class Localiser:
    """Chooses the weights that a client sends: `localiser(delta, start, client, keep) -> mask`, bool [n_trainable].

    sizes: of the layers; scope: "layer" keeps the share `keep` of each, "global" of all weights, "floor" of all weights
    but at least `keep * floor` of each layer; learning: None, or the keyword arguments with which the client refines
    that choice by magnitude on its data (local_training.Client.learn_mask).
    """

    def __init__(self, sizes, scope="layer", floor=0.1, learning=None):
        self.sizes = tuple(sizes) if scope != "global" else (sum(sizes),)
        self.floor, self.learning = floor if scope == "floor" else None, learning

    def __call__(self, delta, start, client, keep):
        mask = self.largest(delta, keep)
        return client.learn_mask(start, delta, mask, **self.learning) if self.learning else mask

    def largest(self, delta, keep):
        """Return the mask of the largest |delta|."""
        if self.floor is None:
            return top_k_mask(delta, keep, self.sizes)
        least = top_k_mask(delta, keep * self.floor, self.sizes)
        k = max(int(least.sum()), round(keep * len(delta)))
        return torch.zeros_like(least).index_fill_(0, delta.abs().masked_fill(least, torch.inf).topk(k).indices, True)


def top_k_mask(delta, keep, sizes):
    """Return the bool mask `[n]` of the largest |delta|, delta `[n]`: round(keep * size) of every block of `sizes`.

    At least one of each block is kept. The "dataless" localisation of He et al. 2024.
    """
    mask = torch.zeros_like(delta, dtype=torch.bool)
    for part, chosen in zip(delta.abs().split(sizes), mask.split(sizes), strict=True):
        chosen[part.topk(max(1, round(keep * len(part))), sorted=False).indices] = True
    return mask


class Stitcher:
    """Merges sparse updates: `stitcher(update, kept) -> step [dim]`.

    update [dim]: the clients' weighted mean, in which they have 0 where they kept nothing; it is changed. kept
    [n_trainable]: the share of their weight that kept each weight, not needed with prior 1.

    A weight moves by the mean of those that kept it, where each of the others counts as `prior` of a vote for leaving
    it: with 0 this is the mean of those that kept it (He et al. 2024, with sample weights), with 1 the mean over all. A
    weight that nobody kept stays. Buffers `[dim - n_trainable]` are averaged over all clients.
    """

    def __init__(self, layout, prior=0.0):
        self.n, self.prior = layout.n_trainable, prior

    def __call__(self, update, kept):
        if self.prior != 1:
            votes = kept + self.prior * (1 - kept) if self.prior else kept
            update[: self.n] = torch.where(kept > 0, update[: self.n] / votes, 0)
        return update
