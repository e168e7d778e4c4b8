"""CIFAR-10 and CIFAR-100 as published."""

import numpy as np
import torch

from fedmerge import files
from fedmerge.datasets import cifar_pickle, published
from fedmerge.errors import InputError, reason
from fedmerge.randomness import generator
from fedmerge.registry import dataset


@dataset("CIFAR10", pixels=32, augment=True, download="CIFAR10")
def load_cifar10(root, seed):
    """the published python version of CIFAR-10, from its folder or from its tar.gz (Krizhevsky 2009)"""
    return *published.as_images(_read(root, "CIFAR10")), 10


@dataset("CIFAR100", pixels=32, augment=True, download="CIFAR100")
def load_cifar100(root, seed):
    """the published python version of CIFAR-100, with its 100 fine classes (Krizhevsky 2009)"""
    return *published.as_images(_read(root, "CIFAR100")), 100


@dataset("CIFAR10T", pixels=32, augment=True, label_set="CIFAR10")
def load_cifar10_thousand(root, seed):
    """1,000 training samples of CIFAR-10, by seed, with its whole test set: for trying things out"""
    train, test, n_classes = load_cifar10(root, seed)
    return train[torch.randperm(len(train), generator=generator(seed, "subset"))[:1000]], test, n_classes


ARCHIVES = {
    "CIFAR10": (
        "cifar-10-python.tar.gz",
        "cifar10/cifar-10-python.tar.gz",
        "cifar-10-batches-py/cifar10.tar.gz",
        "cifar10.tar.gz",
    ),
    "CIFAR100": ("cifar-100-python.tar.gz", "cifar100/cifar-100-python.tar.gz"),
}
LABELS = {"CIFAR10": b"labels", "CIFAR100": b"fine_labels"}


def _read(root, name):
    """Return {"train": (uint8 [N, 3, 32, 32], int64 [N]), "test": ...} of the python version of CIFAR10 or CIFAR100.

    Its folder or its tar.gz lies in the Path `root`. Raises InputError if there is none, or a file of it is damaged.
    """
    import torchvision

    theirs = getattr(torchvision.datasets, name)
    lists = {"train": theirs.train_list, "test": theirs.test_list}
    wanted = {file for part in lists.values() for file, _ in part}
    source, blobs = _files(root, name, theirs.base_folder, wanted)
    parts, sums = {}, []
    for part, listed in lists.items():
        found = {file: blobs[file] for file, _ in listed if file in blobs}
        if not found:
            raise InputError(f"{source}: holds no {part} batch ({', '.join(file for file, _ in listed)})")
        batches = [_batch(blob, f"{source}/{file}", LABELS[name]) for file, blob in found.items()]
        parts[part] = tuple(map(torch.cat, zip(*batches, strict=True)))
        if len(found) < len(listed):
            absent = ", ".join(file for file, _ in listed if file not in found)
            published.warn(f"{source} holds a part of {name} only: {absent} missing")
        sums += [(found[file], md5) for file, md5 in listed if file in found]
    published.check_sums(source, sums)
    return parts


def _files(root, name, folder, wanted):
    """Return where the dataset lies and {file name: bytes} of its files."""
    for place in (root / folder, root / name.lower() / folder):
        found = [path for path in sorted(place.glob("*")) if path.name in wanted]
        if found:
            return place, {path.name: files.read_bytes(path, files.DATA) for path in found}
    for archive in (root / place for place in ARCHIVES[name]):
        if archive.exists():
            return archive, published.read_tar(archive, wanted)
    raise published.missing(name, root)


def _batch(blob, source, key):
    """Return (images, labels) in the bytes of one batch file. Raises InputError naming `source` if they are not one."""
    try:
        batch = {_as_bytes(name): value for name, value in cifar_pickle.loads(blob).items()}
        pixels, labels = batch.get(b"data"), batch.get(key)
        if not isinstance(pixels, np.ndarray) or not isinstance(labels, list):
            raise ValueError(f"it has no data and {key.decode()}")
        if not all(type(label) is int and 0 <= label < 2**31 for label in labels):
            raise ValueError("a label is no class")
        if pixels.shape != (len(labels), 3072):
            raise ValueError(f"data is {pixels.shape}, but there are {len(labels)} labels")
    except ValueError as error:
        raise InputError(f"{source}: not a CIFAR batch ({reason(error)})") from None
    return torch.from_numpy(pixels.reshape(-1, 3, 32, 32).copy()), torch.tensor(labels, dtype=torch.int64)


def _as_bytes(text):
    return text.encode() if isinstance(text, str) else text
