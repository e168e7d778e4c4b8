"""The batches that clients train on, and how many images are evaluated at a time."""

import math
from itertools import islice

import torch
import torch.nn.functional as F

CROP_PADDING = 4  # pixels on each side


def batch_bounds(n, batch_size):
    """Return the [(begin, end)] of the batches of `n` samples; a single one left over joins the batch before it.

    BatchNorm has no variance to divide by in a batch of one.
    """
    cuts = list(range(0, n, batch_size))
    if batch_size > 1 and len(cuts) > 1 and n - cuts[-1] == 1:
        cuts.pop()
    return list(zip(cuts, [*cuts[1:], n], strict=True))


def augment(images, draws, reflect=False):
    """Crop images [B, C, H, W] at random after padding with CROP_PADDING black pixels, and flip them at random.

    draws int64 [B, 3]: rows and columns to move by, 0..2 * CROP_PADDING, and 1 to flip; one row for each sample.
    reflect: pad with the pixels that lie as far inside the border, instead of black ones.
    """
    b, c, h, w = images.shape
    at = images.device
    down, right, flip = draws[:, 0, None], draws[:, 1, None], draws[:, 2, None] == 1
    rows = down + torch.arange(h, device=at)  # [B, H]
    columns = right + torch.where(flip, torch.arange(w - 1, -1, -1, device=at), torch.arange(w, device=at))  # [B, W]
    if reflect:
        padded, rows, columns = images, _reflected(rows, h), _reflected(columns, w)
    else:
        padded = F.pad(images, [CROP_PADDING] * 4)
    which = torch.arange(b, device=at)[:, None, None, None]
    return padded[which, torch.arange(c, device=at)[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]


def _reflected(places, n):
    """Return which of n pixels is at the places int64 of a padded row."""
    inside = (places - CROP_PADDING).abs()
    return n - 1 - (n - 1 - inside).abs()


def client_choices(splits, indices, batch_size, epochs, rng, augmented=False, n_steps=None):
    """Yield which samples are in each batch of `epochs` shuffled passes through one client's, and how they are moved.

    That is int64 [B] into splits.train, and int64 [B, 3] as `augment` has it, or None. indices int64 [n]: the client's;
    rng: the CPU generator of this client and round. n_steps: end after so many, if these are fewer. All draws are made
    and moved to the data's device before the first batch, so that the steps wait for nothing.
    """
    n, device = len(indices), splits.train.labels.device
    bounds = batch_bounds(n, batch_size)
    begun = epochs if n_steps is None else min(epochs, -(-n_steps // len(bounds)))
    orders = torch.stack([torch.randperm(n, generator=rng) for _ in range(begun)])
    orders = indices.cpu()[orders].to(device)
    if augmented:
        for _ in range(epochs - begun):
            torch.randperm(n, generator=rng)  # so that the draws do not hang on how many steps are taken
        sides = torch.tensor([2 * CROP_PADDING + 1, 2 * CROP_PADDING + 1, 2])
        draws = (torch.rand(begun, n, 3, generator=rng) * sides).long().to(device)
    steps = ((epoch, begin, end) for epoch in range(begun) for begin, end in bounds)
    for epoch, begin, end in islice(steps, n_steps):
        yield orders[epoch, begin:end], draws[epoch, begin:end] if augmented else None


def batch(splits, chosen, draws=None):
    """Return (x float32 [B, C, H, W], y int64 [B]) of what client_choices yields."""
    x = splits.train.images[chosen]
    if draws is not None:
        x = augment(x, draws, splits.reflect)
    return splits.normalise(x), splits.train.labels[chosen]


def client_batches(*choices, **how):
    """Yield (x, y) of each batch; takes what `client_choices` takes."""
    splits = choices[0]
    return (batch(splits, chosen, draws) for chosen, draws in client_choices(*choices, **how))


PIXELS = 2**21  # of a batch on a GPU: 2,048 images of 32x32, at which a ResNet-50 takes some 8 GB
CPU_PIXELS = 2**17  # of one on a CPU, however many threads it has: their number is to change no bit of a result


def batch_size(images, image_size=None):
    """Return how many of data.Images are evaluated at a time.

    image_size: pixels that the network sees, if not theirs.
    """
    size = math.prod(images.images.shape[-2:]) if image_size is None else image_size**2
    if images.labels.device.type == "cpu":
        return min(512, max(1, CPU_PIXELS // size))
    return max(1, PIXELS // size)
