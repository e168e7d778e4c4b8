"""Keyed randomness: every draw has a generator of its own, made of the seed and of what it is for."""

import hashlib
import math


def round_half_up(x):
    """Return the nearest whole number of a positive x, the larger one of two."""
    return int(x + 0.5)


def count_of(share, n):
    """Return how many a share of n are, rounded up; 0.07 of 100 are 7, whatever the last bit of the product."""
    return math.ceil(share * n - 1e-9)


def key_seed(seed, *key):
    """Return the 63-bit seed of one purpose, e.g. `key_seed(0, "batches", round, client)`.

    Draws of different keys are independent, so that an algorithm which draws more, a resumed run or another number of
    processes changes nothing for the others.
    """
    digest = hashlib.sha256(repr((int(seed), *key)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed, *key):
    """Return a CPU torch.Generator for one purpose; see `key_seed`."""
    import torch

    return torch.Generator().manual_seed(key_seed(seed, *key))
