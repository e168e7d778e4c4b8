"""CIFAR-10 and CIFAR-100, in files that the tests write themselves."""

import gzip
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch
from cifar_files import batch, pickled, write_cifar

from fedmerge import datasets
from fedmerge.datasets import cifar, published
from fedmerge.errors import InputError


@pytest.fixture
def root(tmp_path):
    return write_cifar(tmp_path)


def test_cifar_is_read_pixel_for_pixel_and_a_foreign_sum_is_said(root, capsys):
    train, test, n_classes = cifar.load_cifar10(root, seed=0)
    warned = capsys.readouterr().err
    assert "MD5 differs" in warned
    assert "data_batch_3, data_batch_4, data_batch_5 missing" in warned
    assert (len(train), len(test), n_classes) == (40, 10, 10)
    pixels = np.concatenate([batch(20, 1)[b"data"], batch(20, 2)[b"data"]])
    assert train.images.dtype == torch.uint8
    assert train.images[25, 2, 31, 7] == pixels[25, 2 * 1024 + 31 * 32 + 7]
    assert train.labels.tolist() == batch(20, 1)[b"labels"] + batch(20, 2)[b"labels"]


@pytest.mark.parametrize("place", cifar.ARCHIVES["CIFAR10"])
def test_cifar_is_read_from_its_archive_in_every_place(root, tmp_path, place):
    expected, _, _ = cifar.load_cifar10(root, seed=0)
    archive = tmp_path / "other" / place
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root / "cifar-10-batches-py", "cifar-10-batches-py")
    train, _, _ = cifar.load_cifar10(tmp_path / "other", seed=0)
    assert torch.equal(train.images, expected.images)
    archive.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(InputError, match="not a whole tar"):
        cifar.load_cifar10(tmp_path / "other", seed=0)


def test_an_archive_that_unpacks_to_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "MAX_UNPACKED", 2**20)
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 2**24  # which tarfile reads into memory at once
    content = header.tobuf() + bytes(2**24)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(gzip.compress(content))
    with pytest.raises(InputError, match=r"not a whole tar\.gz archive \(unpacks to more than 1048576 bytes"):
        cifar.load_cifar10(tmp_path, seed=0)


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


BAD = {
    "truncated": lambda: pickled(batch(20, 1))[:30000],
    "empty": lambda: b"",
    "not a pickle": lambda: b"hello world",
    "os.system": lambda: pickle.dumps(Evil()),
    "os.system inside": lambda: pickle.dumps({b"data": Evil(), b"labels": []}),
    "a NumPy function": lambda: pickle.dumps({b"data": np.load, b"labels": []}),
    "other keys": lambda: pickled({b"images": [1]}),
    "a list": lambda: pickled([1, 2]),
    "fewer labels": lambda: pickled(batch(20, 1) | {b"labels": [0] * 19}),
    "floats": lambda: pickled(batch(20, 1) | {b"data": np.zeros((20, 3072))}),
    "labels beyond 9": lambda: pickled(batch(20, 1) | {b"labels": [10] * 20}),
    "words for labels": lambda: pickled(batch(20, 1) | {b"labels": [b"cat"] * 20}),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_batch_is_refused_in_one_line(root, kind, monkeypatch):
    monkeypatch.chdir(root)
    (root / "cifar-10-batches-py" / "data_batch_2").write_bytes(BAD[kind]())
    with pytest.raises(InputError) as caught:
        datasets.load_dataset("CIFAR10", root, seed=0)
    assert "data_batch_2" in str(caught.value) or "outside 0..9" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (root / "evil").exists()


def test_a_folder_without_test_batch_is_refused(root):
    (root / "cifar-10-batches-py" / "test_batch").unlink()
    with pytest.raises(InputError, match="holds no test batch"):
        cifar.load_cifar10(root, seed=0)


def test_cifar10t_is_a_thousand_by_seed(root):
    (root / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickled(batch(1500, 1)))
    sets = [cifar.load_cifar10_thousand(root, seed)[0] for seed in (0, 0, 1)]
    assert [len(s) for s in sets] == [1000] * 3
    assert torch.equal(sets[0].images, sets[1].images)
    assert not torch.equal(sets[0].images, sets[2].images)


def test_cifar100_is_read_with_its_fine_labels(tmp_path, capsys):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    rng = np.random.default_rng(0)
    truth = {}
    for name, n in (("train", 30), ("test", 12)):
        labels = {b"fine_labels": rng.integers(100, size=n).tolist(), b"coarse_labels": [0] * n}
        truth[name] = batch(n, 5) | labels
        (folder / name).write_bytes(pickled(truth[name]))
    (folder / "meta").write_bytes(b"never read")
    splits = datasets.load_dataset("CIFAR100", tmp_path, seed=0)
    assert "MD5 differs" in capsys.readouterr().err
    assert (len(splits.train), len(splits.val), splits.n_classes) == (27, 3, 100)
    assert splits.test.labels.tolist() == truth["test"][b"fine_labels"]
    assert splits.test.images[3, 1, 2, 5] == truth["test"][b"data"][3, 1024 + 2 * 32 + 5]
