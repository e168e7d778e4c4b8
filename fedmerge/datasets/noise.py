"""Clients whose images are noisy, each to its own degree."""

from dataclasses import replace

import torch

from fedmerge.datasets.images import Splits
from fedmerge.randomness import generator


def with_noise(splits: Splits, parts: list, level: float, seed: int) -> Splits:
    """Return the Splits with Gaussian noise on the training images of each client (NIID-Bench's feature skew by noise).

    parts: each client's indices into the training images. Its deviation is level * (i + 1) / n for client i of n, as a
    share of the brightest value: the code of Li et al. 2022 has it so, where the paper speaks of the variance. Here
    noise is drawn once, so that a client's images are the same in all epochs, and results are cut to what 8 bits hold.
    Validation and test images stay as they are, as do mean and deviation.
    """
    images = splits.train.images.clone()
    for i, part in enumerate(parts):
        deviation, rng = 255 * level * (i + 1) / len(parts), generator(seed, "feature noise", i)
        for some in part.split(1024):  # the float copies of a few images at a time
            noise = torch.randn(len(some), *images.shape[1:], generator=rng)
            images[some] = (images[some] + deviation * noise).round().clamp(0, 255).to(torch.uint8)
    return replace(splits, train=replace(splits.train, images=images))
