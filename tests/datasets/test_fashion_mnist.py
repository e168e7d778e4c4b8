"""FashionMNIST, in files that the tests write themselves."""

import gzip

import numpy as np
import pytest
import torch

from fedmerge import datasets
from fedmerge.datasets.fashion_mnist import load_fashion_mnist
from fedmerge.errors import InputError


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return gzip.compress(header + array.tobytes())


@pytest.fixture
def fashion(tmp_path):
    """The four files of FashionMNIST where torchvision puts them: 40 and 10 images."""
    folder, rng = tmp_path / "FashionMNIST" / "raw", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for prefix, n in (("train", 40), ("t10k", 10)):
        images, labels = rng.integers(256, size=(n, 28, 28), dtype="u1"), rng.integers(10, size=n, dtype="u1")
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
    return tmp_path


def test_fashion_mnist_is_read_as_torchvision_reads_it(fashion, capsys):
    import torchvision  # here, since it takes seconds

    train, test, n_classes = load_fashion_mnist(fashion, seed=0)
    assert "MD5 differs" in capsys.readouterr().err
    assert (train.images.shape, len(test), n_classes) == ((40, 1, 28, 28), 10, 10)
    folder = fashion / "FashionMNIST" / "raw"
    for path in folder.glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    theirs = torchvision.datasets.FashionMNIST(fashion, train=True)
    assert torch.equal(train.images[:, 0], theirs.data)
    assert torch.equal(train.labels, theirs.targets)


BAD_IDX = {
    "empty": b"",
    "not gzip": b"hello world",
    "truncated": idx(np.zeros((40, 28, 28), "u1"))[:-20],
    "a bomb": gzip.compress(bytes([0, 0, 8, 3]) + b"\xff" * 12),
    "no sizes": gzip.compress(bytes([0, 0, 8, 0])),
    "sizes cut off": gzip.compress(bytes([0, 0, 8, 3, 0, 0])),
    "of ints": gzip.compress(bytes([0, 0, 12, 1, 0, 0, 0, 0])),
    "fewer images": idx(np.zeros((39, 28, 28), "u1")),
    "flat images": idx(np.zeros((40, 784), "u1")),
    "images of 3 pixels": idx(np.zeros((40, 3, 3), "u1")),
    "images of 513 pixels": idx(np.zeros((40, 513, 513), "u1")),
}


@pytest.mark.parametrize("kind", BAD_IDX)
def test_a_bad_idx_file_is_refused_in_one_line(fashion, kind):
    (fashion / "FashionMNIST" / "raw" / "train-images-idx3-ubyte.gz").write_bytes(BAD_IDX[kind])
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz") as caught:
        datasets.load_dataset("FashionMNIST", fashion, seed=0)
    assert "\n" not in str(caught.value)
