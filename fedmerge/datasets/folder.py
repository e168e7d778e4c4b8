"""Folders of images, one for each class, perhaps in one for each domain."""

import numpy as np
import torch

from fedmerge import files
from fedmerge.datasets.images import Images
from fedmerge.errors import InputError, reason
from fedmerge.randomness import generator

FOLDER_TEST = 0.2  # share of every class of every domain that is tested on
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_PIXELS = 2**26  # of one file


def load_folder(folder, size):
    """Return (training Images, test Images, number of classes, domains) of folder/<domain>/<class>/*.png or jpg.

    The test set is a fifth of every class of every domain, at least one image unless there is only one, the same
    whatever the seed. Classes are those of all domains together, in order of their names.
    """
    images, labels, domains, classes, names = _read(folder, size)
    tested = tested_places(domains * len(classes) + labels)
    whole = Images(images, labels, domains)
    return whole[~tested], whole[tested], len(classes), names


def tested_places(groups):
    """Return which of the images, of groups int64 [N], are tested on, bool [N]: a fifth of every group, at least one
    unless it has only one.
    """
    rng, tested = generator(0, "test of a folder"), torch.zeros(len(groups), dtype=torch.bool)
    for group in groups.unique():
        members = (groups == group).nonzero().flatten()
        if len(members) > 1:
            n = max(1, round(FOLDER_TEST * len(members)))
            tested[members[torch.randperm(len(members), generator=rng)[:n]]] = True
    return tested


def _read(folder, size):
    """Return the images of folder/<domain>/<class>/*.png or jpg, in colour and resized to `size` pixels.

    That is images uint8 [N, 3, size, size], labels int64 [N], domains int64 [N], the names of the classes and those of
    the domains, both sorted. Raises InputError if there are none, or one cannot be read.
    """
    found = sorted(p for p in folder.glob("*/*/*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.is_dir())
    if not found:
        raise InputError(f"no images in {folder}: they must lie in {folder}/<domain>/<class>/ as .png or .jpg")
    domains = sorted({path.parts[-3] for path in found})
    classes = sorted({path.parts[-2] for path in found})
    images = torch.empty(len(found), 3, size, size, dtype=torch.uint8)
    for image, path in zip(images, found, strict=True):
        image.copy_(_read_image(path, size))
    labels = torch.tensor([classes.index(path.parts[-2]) for path in found])
    return images, labels, torch.tensor([domains.index(path.parts[-3]) for path in found]), classes, tuple(domains)


def _read_image(path, size):
    from PIL import Image

    try:
        with files.open_regular(path, files.IMAGE) as raw, Image.open(raw, formats=("PNG", "JPEG")) as file:
            if file.width * file.height > MAX_PIXELS:
                raise ValueError(f"{file.width} x {file.height} pixels are too many")
            colours = file.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    except InputError:
        raise
    except Exception as error:  # a damaged image can raise nearly anything
        raise InputError(f"{path}: not an image ({type(error).__name__}: {reason(error)})") from None
    return torch.from_numpy(np.array(colours)).permute(2, 0, 1)
