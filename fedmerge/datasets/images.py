"""Labelled images, and a dataset of them, as tensors."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F

MEMORY = torch.channels_last  # of the batches that networks get; benchmarks/settings.py tries the other


@dataclass(frozen=True)
class Images:
    """Labelled images on one device: images uint8 [N, C, H, W], labels int64 [N], and perhaps domains int64 [N]."""

    images: torch.Tensor
    labels: torch.Tensor
    domains: torch.Tensor | None = None

    def __len__(self):
        return len(self.labels)

    def _each(self, change):
        return Images(*(None if t is None else change(t) for t in (self.images, self.labels, self.domains)))

    def __getitem__(self, index):
        return self._each(lambda tensor: tensor[index])

    def to(self, device):
        return self._each(lambda tensor: tensor.to(device))


def join(parts):
    """Return the Images of several as one."""
    columns = zip(*((part.images, part.labels, part.domains) for part in parts), strict=True)
    return Images(*(None if column[0] is None else torch.cat(column) for column in columns))


@dataclass(frozen=True)
class Splits:
    """A dataset, ready to train on: three disjoint sets; mean and deviation [C] of the training images / 255."""

    train: Images
    val: Images
    test: Images
    n_classes: int
    mean: torch.Tensor
    std: torch.Tensor
    domains: tuple = ()  # names of the domains that the images' `domains` number
    fingerprint: str = ""  # tells whether two runs read the same images and labels
    enlarged: int | None = None  # pixels to which `normalise` enlarges them, where they are smaller
    reflect: bool = False  # what `augment` pads with

    @property
    def image_size(self):
        """How many pixels high and wide images are as the network sees them."""
        return self.enlarged or self.train.images.shape[-1]

    def to(self, device):
        moved = {name: getattr(self, name).to(device) for name in ("train", "val", "test", "mean", "std")}
        return replace(self, **moved)

    @cached_property
    def _affine(self):
        return (1 / (255 * self.std))[:, None, None], (-self.mean / self.std)[:, None, None]

    def normalise(self, images):
        """Return uint8 images [B, C, H, W] as float32 of mean 0 and deviation 1, in channels_last memory.

        These are [B, C, image_size, image_size], bilinearly enlarged where they are kept smaller: all of them enlarged
        would take several times the memory.
        """
        scale, shift = self._affine
        x = images.to(torch.float32, memory_format=MEMORY).mul_(scale).add_(shift)
        return x if self.enlarged is None else F.interpolate(x, (self.enlarged, self.enlarged), mode="bilinear")
