"""CIFAR files as published, and as pickle writes them today, made up."""

import io
import pickle

import numpy as np


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its str, as in the published batches."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_str(self, value):
        self.write(b"T" + len(value).to_bytes(4, "little") + value)

    dispatch[bytes] = save_str


def pickled(value, pickler=Python2Pickler, protocol=2):
    file = io.BytesIO()
    pickler(file, protocol).dump(value)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def batch(n, seed):
    rng = np.random.default_rng(seed)
    return {
        b"labels": [int(y) for y in rng.integers(10, size=n)],
        b"data": rng.integers(256, size=(n, 3072), dtype="u1"),
    }


def write_cifar(root):
    """Leave a folder of the published layout with 20 images in each of two training batches and 10 test images."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for name, n, seed in (("data_batch_1", 20, 1), ("data_batch_2", 20, 2), ("test_batch", 10, 3)):
        (folder / name).write_bytes(pickled(batch(n, seed)))
    return root
