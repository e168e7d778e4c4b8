"""Folders of images, one for each class, perhaps in one for each domain."""

import torch

from fedmerge.datasets import readers
from fedmerge.datasets.images import Images
from fedmerge.randomness import generator

FOLDER_SIZE = 32  # pixels, unless --image_size says otherwise
FOLDER_TEST = 0.2  # share of every class of every domain that is tested on


def load_folder(folder, size):
    """Return (training Images, test Images, number of classes, domains) of folder/<domain>/<class>/*.png or jpg.

    The test set is a fifth of every class of every domain, at least one image unless there is only one, the same
    whatever the seed. Classes are those of all domains together, in order of their names.
    """
    images, labels, domains, classes, names = readers.read_folder(folder, size)
    rng, tested = generator(0, "test of a folder"), torch.zeros(len(labels), dtype=torch.bool)
    for group in (domains * len(classes) + labels).unique():
        members = (domains * len(classes) + labels == group).nonzero().flatten()
        if len(members) > 1:
            n = max(1, round(FOLDER_TEST * len(members)))
            tested[members[torch.randperm(len(members), generator=rng)[:n]]] = True
    whole = Images(images, labels, domains)
    return whole[~tested], whole[tested], len(classes), names
