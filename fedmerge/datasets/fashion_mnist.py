"""FashionMNIST as published."""

import gzip
import io
import zlib
from math import prod

import numpy as np
import torch

from fedmerge import files
from fedmerge.datasets import published
from fedmerge.errors import InputError, reason
from fedmerge.registry import dataset


@dataset("FashionMNIST", pixels=28, download="FashionMNIST")
def load_fashion_mnist(root, seed):
    """the published IDX files of FashionMNIST, 28x28 in grey (Xiao, Rasul and Vollgraf 2017)"""
    return *published.as_images(_read(root, "FashionMNIST")), 10


def _read(root, name):
    """Return {"train": (uint8 [N, 1, H, W], int64 [N]), "test": ...} of the four gzipped IDX files of `name`.

    They lie in the Path `root`, or under it where torchvision puts them. Raises InputError if one is not there or not
    what it should be.
    """
    import torchvision

    sums = dict(getattr(torchvision.datasets, name).resources)
    places = (root / name / "raw", root / name, root)
    folder = next((p for p in places if all((p / file).exists() for file in sums)), None)
    if folder is None:
        raise published.missing(name, root)
    blobs = {file: files.read_bytes(folder / file, files.DATA) for file in sums}
    published.check_sums(folder, [(blobs[file], md5) for file, md5 in sums.items()])
    parts = {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        names = [f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz"]
        images, labels = (_idx(blobs[name], folder / name) for name in names)
        if images.dim() != 3 or images.shape[1] != images.shape[2] or labels.shape != images.shape[:1]:
            raise InputError(f"{folder / names[0]}: {tuple(images.shape)} images, but labels {tuple(labels.shape)}")
        least, most = published.SIDES
        if not least <= images.shape[1] <= most:
            raise InputError(
                f"{folder / names[0]}: images of {images.shape[1]} pixels a side; {least} to {most} can be used"
            )
        parts[part] = images[:, None], labels.long()
    return parts


def _idx(blob, source):
    """Return the uint8 tensor in gzipped IDX bytes: 0 0 8 d, then d sizes of 4 bytes, big-endian, then the entries."""
    try:
        with gzip.open(io.BytesIO(blob)) as file:
            content = file.read(published.MAX_BYTES)
        if content[:3] != b"\0\0\x08":
            raise ValueError("not an IDX file of bytes")
        shape = np.frombuffer(content, ">u4", content[3], 4).tolist()
        if not shape or len(content) != 4 + 4 * len(shape) + prod(shape):
            raise ValueError(f"its header says {shape}, but it holds {len(content)} bytes")
        return torch.frombuffer(bytearray(content[4 + 4 * len(shape) :]), dtype=torch.uint8).view(shape)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise InputError(f"{source}: {reason(error)}") from None
