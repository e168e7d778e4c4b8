"""The digits that scikit-learn bundles: by themselves, in several domains, and by writers."""

from dataclasses import replace
from functools import cache

import torch
import torch.nn.functional as F

from fedmerge.datasets.images import Images
from fedmerge.randomness import generator
from fedmerge.registry import dataset


@dataset(
    "DIGITS",
    pixels=8,
    bundled=True,
    domains=True,
    model="cnn",
    never_augmented="a flipped or shifted 8x8 digit is another image",
)
def load_digits(root, seed):
    """scikit-learn's bundled 1,797 handwritten 8x8 digits; the test set is a stratified 20 %, whatever the seed"""
    return *_split_digits(_bundled_digits()), 10, DOMAINS


@dataset(
    "DIGITSA",
    pixels=8,
    bundled=True,
    domains=True,
    model="cnn",
    label_set="DIGITS",
    never_augmented="a flipped or shifted 8x8 digit is another image",
)
def load_digits_a(root, seed):
    """the digits of half of the WRITERS, to train a start on for the other half"""
    return *_split_digits(_of_writers(range(0, WRITERS, 2))), 10, tuple(f"writer {w}" for w in range(0, WRITERS, 2))


@dataset(
    "DIGITSB",
    pixels=8,
    bundled=True,
    domains=True,
    model="cnn",
    label_set="DIGITS",
    never_augmented="a flipped or shifted 8x8 digit is another image",
)
def load_digits_b(root, seed):
    """the digits of the other half, each writer a domain"""
    return *_split_digits(_of_writers(range(1, WRITERS, 2))), 10, tuple(f"writer {w}" for w in range(1, WRITERS, 2))


WRITERS = 10  # made up: the bundled digits do not tell who wrote them


@cache  # what is made of them is a copy
def _bundled_digits():
    from sklearn.datasets import load_digits as bundled

    digits = bundled()
    images = torch.from_numpy(digits.images * 15).to(torch.uint8).unsqueeze(1)  # 17 grey levels, 0..240
    return Images(images, torch.from_numpy(digits.target).long())


def _split_digits(digits):
    from sklearn.model_selection import train_test_split

    labels = digits.labels
    train, test = train_test_split(torch.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    return digits[train], digits[test]


def _of_writers(wanted):
    """Return the digits of the `wanted` of WRITERS, numbered from 0 in `domains`.

    Writers are clusters by style: each class is clustered by k-means, and the clusters of a class go to the writers in
    the order of their mean along the direction in which images of one class differ most: their slant, mostly.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    digits = _bundled_digits()
    pixels = digits.images.flatten(1).double().numpy()
    classes = [(digits.labels == c).numpy() for c in range(10)]
    for own in classes:
        pixels[own] -= pixels[own].mean(0)
    style = PCA(1, svd_solver="full").fit_transform(pixels)[:, 0]
    writers = torch.empty(len(digits), dtype=torch.int64)
    for own in classes:
        clusters = KMeans(WRITERS, n_init=4, random_state=0).fit_predict(pixels[own])
        means = torch.tensor([style[own][clusters == k].mean() for k in range(WRITERS)])
        writers[torch.from_numpy(own)] = means.argsort().argsort()[torch.from_numpy(clusters).long()]
    number = torch.full((WRITERS,), -1).index_copy(0, torch.tensor(wanted), torch.arange(len(wanted)))
    whole = replace(digits, domains=number[writers])
    return whole[whole.domains >= 0]


def _noisy(images, part):
    noise = torch.randn(images.shape, generator=generator(0, "noisy digits", part))  # of the part, whatever the seed
    return (images + 60 * noise).round().clamp(0, 240).byte()


# What becomes of digits, uint8 [N, 1, H, W] of 0 to 240, in each domain; part: 0 of those to train on, 1 of those for
# validation, 2 of those for the test.
DOMAINS = {
    "clean": lambda images, part: images,
    "inverted": lambda images, part: 240 - images,
    "blurred": lambda images, part: F.avg_pool2d(images.float(), 3, 1, 1, count_include_pad=False).round().byte(),
    "rotated": lambda images, part: images.rot90(1, (2, 3)),
    "noisy": _noisy,
}
