"""Tiny-ImageNet-200 from the caches of import_TIN.py."""

import torch

from fedmerge import files, tensor_files
from fedmerge.datasets.images import Images
from fedmerge.datasets.published import or_without
from fedmerge.errors import InputError
from fedmerge.registry import dataset


@dataset(
    "TinyImageNet",
    pixels=64,
    augment=True,
    download={
        "tiny-imagenet-200.zip": (
            "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
            "90528d7ca1a48142e341f4ef8d21d0de",
        )
    },
    then="python import_TIN.py",
)
def load_tiny_imagenet(root, seed):
    """Tiny-ImageNet-200 from the caches that import_TIN.py writes; the published validation set is the test set"""
    train, test = (_read_cache(root / f"tinyimagenet_{part}_cache.pt", root) for part in ("train", "val"))
    if train["wnids"] != test["wnids"]:
        raise InputError(
            f"the two Tiny-ImageNet caches in {root} have different classes: run 'python import_TIN.py' again"
        )
    return *(Images(part["images"], part["labels"]) for part in (train, test)), len(train["wnids"])


def _read_cache(path, root):
    if not path.exists():
        raise InputError(
            f"no {path}: run 'python data.py --download TinyImageNet --data_root {root}' and then "
            f"'python import_TIN.py --data_root {root}'{or_without()}"
        )
    cache = tensor_files.load(path, files.CACHE, "a cache of import_TIN.py")
    images, labels, wnids = (
        cache.get(key) if isinstance(cache, dict) else None for key in ("images", "labels", "wnids")
    )
    if not tensor_files.is_plain(images) or not tensor_files.is_plain(labels) or not isinstance(wnids, list):
        raise InputError(f"{path}: not a cache of import_TIN.py (it lacks images, labels or classes)")
    good = images.dtype == torch.uint8 and labels.dtype == torch.int64 and images.shape[1:] == (3, 64, 64)
    if not good or labels.shape != images.shape[:1] or not all(isinstance(wnid, str) for wnid in wnids):
        found = f"images {images.dtype} {tuple(images.shape)}, labels {labels.dtype} {tuple(labels.shape)}"
        raise InputError(f"{path}: not a cache of import_TIN.py ({found})")
    return cache
