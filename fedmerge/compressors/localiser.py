"""Which weights a client sends."""

import torch

from fedmerge.compressors.largest import top_k_mask


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
