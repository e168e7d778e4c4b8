"""Clients whose images are noisy, each to its own degree."""

from dataclasses import replace

import torch

from fedmerge.datasets.images import Splits
from fedmerge.randomness import generator


def with_noise(splits: Splits, parts: list, level: float, seed: int) -> Splits:
    """Return the Splits with Gaussian noise on the training images of each client (NIID-Bench's feature skew by noise).

    parts: each client's indices into the training images. The deviation of client i of n, from 0, is level * i / (n-1)
    of the brightest value: the first has no noise. That is the rule of the code of Li et al. 2022, whose paper speaks
    of a variance of level * i / n.

    Differs from their code: noise is drawn once, so that a client's images are the same in all epochs, results are cut
    to what 8 bits hold, and test images stay clean, where theirs are as noisy as each client's. Mean and deviation, by
    which images are normalised, are those without noise.
    """
    images = splits.train.images.clone()
    for i, part in enumerate(parts):
        deviation, rng = 255 * level * i / max(1, len(parts) - 1), generator(seed, "feature noise", i)
        for some in part.split(1024):  # the float copies of a few images at a time
            noise = torch.randn(len(some), *images.shape[1:], generator=rng)
            images[some] = (images[some] + deviation * noise).round().clamp(0, 255).to(torch.uint8)
    return replace(splits, train=replace(splits.train, images=images))
