"""A copy of the program, to paste into."""

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def copy_program(folder):
    """Copy the doors and the package into `folder`, a Path, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for door in ROOT.glob("*.py"):
        shutil.copy(door, folder)
    shutil.copytree(ROOT / "fedmerge", folder / "fedmerge", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def environment():
    """Return the variables of a process with one thread that finds no plugins but those it is told of."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "FEDMERGE_PLUGINS": "", "MPLBACKEND": "agg"}
