"""Datasets of one's own: a folder of images or a file of arrays in --data_root, by its name. Needs no torch."""

import re
from pathlib import Path

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")


def place_of(name, root):
    """Return the Path of the dataset `name` in the folder `root`, that of a folder or NAME.npz; None if it has none."""
    if not NAME.fullmatch(name):
        return None
    folder, file = Path(root) / name, Path(root) / f"{name}.npz"
    return folder if folder.is_dir() else file if file.is_file() else None
