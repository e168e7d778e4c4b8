"""Datasets of one's own: a folder of images or a file of arrays in --data_root, by its name. Needs no torch."""

import os
import re
import zipfile
from pathlib import Path

from fedmerge import files

IMPORTED = ("torchvision", "hf", "medmnist")  # the kinds of which datasets/importing.py makes an .npz
IMAGES = ("x_train", "train_images")  # what an .npz may call them
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")


def place_of(name, root):
    """Return the Path of the dataset `name` in the folder `root`, that of a folder or NAME.npz; None if it has none."""
    if not NAME.fullmatch(name):
        return None
    folder, file = Path(root) / name, Path(root) / f"{name}.npz"
    return file if file.is_file() else folder if folder.is_dir() else None  # torchvision's files are in a folder


def pixels_of(path):
    """Return how many pixels high the images of NAME.npz are, by the head of its array, which alone is read.

    None if that cannot be told: whoever loads the file says what is wrong with it.
    """
    from numpy.lib import format as npy

    try:
        with files.open_regular(path, files.ARCHIVE) as raw, zipfile.ZipFile(raw) as archive:
            name = next(f"{images}.npy" for images in IMAGES if f"{images}.npy" in archive.namelist())
            with archive.open(name) as file:
                read = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
                return int(read(file)[0][1])
    except Exception:  # zipfile and numpy have an exception of its own for each way to be bad
        return None


def hint(name, root):
    """Return a sentence on what may be meant by a name that is that of no dataset, "" if nothing is."""
    if name.split(":")[0] in IMPORTED and ":" in name:
        return f"; first: python data.py --import {name} --data_root {root}"
    if name.endswith(".npz") and place_of(name.removesuffix(".npz"), root):
        return "; leave out .npz"
    if not NAME.fullmatch(name) and os.path.basename(name) == name:
        there = [ending for ending in ("", ".npz") if (Path(root) / f"{name}{ending}").exists()]
        return f"; {name}{there[0]} is there: rename it, to letters, digits, dots and hyphens" if there else ""
    return ""
