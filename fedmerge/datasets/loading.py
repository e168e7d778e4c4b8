"""A dataset by its name: read, checked, resized, and divided into training, validation and test set."""

import zlib
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from fedmerge.config.option_help import FOLDER_SIZE
from fedmerge.config.own_data import place_of
from fedmerge.config.resolve import one_domain
from fedmerge.datasets.arrays import load_arrays
from fedmerge.datasets.folder import load_folder
from fedmerge.datasets.images import Images, Splits
from fedmerge.declared import described, mistake
from fedmerge.errors import InputError
from fedmerge.python_source import HERE
from fedmerge.randomness import generator
from fedmerge.registry import DATASETS, said, specs


def label_set(dataset):
    """Return the name of the classes of a dataset: a model's last layer is worth keeping only for the same ones."""
    return said("dataset", dataset, "label_set", dataset)


def resize(images, size):
    """Return uint8 images [N, C, H, W] as [N, C, size, size], by antialiased bilinear interpolation."""
    parts = images.split(1024)  # the float copies of one part at a time
    parts = [F.interpolate(part.float(), (size, size), mode="bilinear", antialias=True) for part in parts]
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in parts])


def load_dataset(name, root, seed, image_size=None, shift="label", validation=True):
    """Return the Splits of `name`, its files under `root`; validation is 10 % of the training set, by seed, or empty.

    image_size: pixels that the network is to see; larger images are shrunk here, smaller ones stay as they are and are
    enlarged a batch at a time, by Splits.normalise. shift: "feature" for a dataset of several domains.
    Raises InputError if the files are not there or not what they should be.
    """
    train, test, n_classes, domains = _read(name, root, seed, image_size)
    for part, images in (("training", train), ("test", test)):
        if not len(images):
            raise InputError(f"{name} under {root} has no {part} images")
        if images.labels.min() < 0 or images.labels.max() >= n_classes:
            words = f"has {part} labels outside 0..{n_classes - 1}"
            spec = specs("dataset").get(name)
            of_plugin = spec is not None and not spec.file.is_relative_to(HERE)  # of others, it is the files' fault
            raise mistake(DATASETS[name], words) if of_plugin else InputError(f"{name} under {root} {words}")
    if validation and len(train) < 2:
        raise InputError(f"{name} under {root} has one training image: there is none for validation")
    crc = _crc32(train, test)
    own = train.images.shape[-1]
    if image_size and image_size < own:
        train, test = (replace(part, images=resize(part.images, image_size)) for part in (train, test))
    order = torch.randperm(len(train), generator=generator(seed, "validation"))
    n_val = max(1, len(train) // 10) if validation else 0
    parts = [train[order[n_val:]], train[order[:n_val]], test]
    if shift == "feature" and isinstance(domains, dict):
        parts = [_in_all_domains(part, number, domains) for number, part in enumerate(parts)]
    domains = tuple(domains) if parts[0].domains is not None else ()
    if shift == "feature":
        _check_domains(name, root, domains, parts)
    return Splits(
        *parts, n_classes, *_mean_std(parts[0].images), domains, crc, image_size if (image_size or 0) > own else None
    )


def _in_all_domains(part, number, domains):
    """Return the Images once in each of the domains {name: (images, number of the part) -> images}."""
    images = torch.cat([change(part.images, number) for change in domains.values()])
    k = len(domains)
    return Images(images, part.labels.repeat(k), torch.arange(k).repeat_interleave(len(part)))


def _check_domains(name, root, domains, parts):
    """Raise InputError unless there are several domains, each with images to train and to test on."""
    if len(domains) < 2:
        raise one_domain(name, root)
    for kind, part in (("training", parts[0]), ("test", parts[2])):
        for number, domain in enumerate(domains):
            if not (part.domains == number).any():
                raise InputError(
                    f"--shift feature: the domain {domain} of {name} has no {kind} image: a class needs two images for "
                    "one to be tested on, and a tenth of the others is for validation; add images, or --shift label"
                )


def _read(name, root, seed, image_size):
    """Return (training Images, test Images, number of classes, domains) as the files have them.

    The domains are the names of those that the images have, or the dict of those in which they can be put.
    """
    root = Path(root).absolute()  # so that messages tell where it looked
    if name in DATASETS:
        train, test, n_classes, *domains = checked(DATASETS[name], DATASETS[name](root, seed))
    elif place_of(name, root) == root / f"{name}.npz":
        train, test, n_classes, *domains = load_arrays(root / f"{name}.npz")
    else:
        train, test, n_classes, *domains = load_folder(root / name, image_size or FOLDER_SIZE)
    return train, test, n_classes, domains[0] if domains else ()


# What Images hold: name, dtype, number of dimensions, and both in words.
HELD = (("images", torch.uint8, 4, "uint8 [N, C, H, W]"), ("labels", torch.int64, 1, "int64 [N]"))


def checked(load, loaded):
    """Return what a function of the shelf loaded; raise InputError unless it is a dataset."""
    if not isinstance(loaded, tuple) or len(loaded) not in (3, 4) or not isinstance(loaded[2], int):
        raise mistake(load, "returns no (train, test, n_classes), nor has a fourth, the domains")
    for name, part in zip(("train", "test"), loaded[:2], strict=True):
        if not isinstance(part, Images):
            raise mistake(load, f"{name} is {described(part)}, not Images")
        for what, tensor, dtype, ndim in (
            ("images", part.images, torch.uint8, 4),
            ("labels", part.labels, torch.int64, 1),
        ):
            if getattr(tensor, "dtype", None) != dtype or tensor.ndim != ndim or len(tensor) != len(part.labels):
                wanted = "uint8 [N, C, H, W]" if ndim == 4 else "int64 [N]"
                raise mistake(load, f"the {what} of {name} are {described(tensor)}, not {wanted}")
        if part.images.shape[2] != part.images.shape[3]:
            raise mistake(load, f"the images of {name} are {described(part.images)}: not as high as wide")
    if loaded[0].images.shape[1:] != loaded[1].images.shape[1:]:
        raise mistake(load, "the images of train and test have different shapes")
    return loaded


def fingerprint(name, root, seed, image_size=None):
    """Return the `fingerprint` of the Splits that load_dataset would return; raises InputError as that does."""
    return _crc32(*_read(name, root, seed, image_size)[:2])


def _crc32(*parts):
    """Return the CRC-32 of the images and labels of several Images, as text."""
    crc = 0
    for part in parts:
        for tensor in (part.images, part.labels):
            crc = zlib.crc32(tensor.contiguous().numpy(), crc)
    return f"{crc:08x}"


def _mean_std(images):
    """Return mean and deviation [C] of uint8 images [N, C, H, W] / 255, from a count of each value."""
    counts = torch.stack([torch.bincount(c.flatten(), minlength=256) for c in images.transpose(0, 1)]).double()
    counts /= counts.sum(1, keepdim=True)
    values = torch.arange(256) / 255.0
    mean = counts @ values.double()
    std = (counts @ values.double().square() - mean.square()).clamp_min(0).sqrt()
    return mean.float(), std.clamp_min(1e-3).float()  # a channel of one colour would divide by zero
