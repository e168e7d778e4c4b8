"""Datasets of other libraries, written once as NAME.npz, which arrays.py reads: `python data.py --import KIND:NAME`.

    torchvision:SVHN        a class of torchvision.datasets
    hf:uoft-cs/cifar10      a dataset of Hugging Face, or a folder that its package `datasets` reads, such as of Parquet
    medmnist:pathmnist      one of MedMNIST

Of every image the pixels are kept as they are, or as --image_size has them; of a set without a test part, a fifth of
every class is tested on.
"""

import inspect
import os
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from fedmerge import files, saving
from fedmerge.config.own_data import NAME
from fedmerge.datasets.folder import tested_places
from fedmerge.errors import InputError, did_you_mean, reason
from fedmerge.registry import DATASETS

SIZES = ("28", "64", "128", "224")  # of MedMNIST's images
NO_SETS = ("VisionDataset", "FakeData", "ImageFolder", "DatasetFolder")  # of torchvision.datasets
HEADS = 2**16  # bytes that an .npz has beside its arrays, generously
SMALLER = "a smaller --image_size"
PARTS = {"train": ("train", "trainval"), "test": ("test", "validation", "val", "valid")}  # what libraries call them


def import_dataset(given, options, root, name=None, size=None):
    """Write the dataset `given`, "KIND:NAME", into the folder `root` as NAME.npz; return a sentence on it.

    options: {name: value} of its own, as text: `train` and `test` say which parts these are, all others are for the
    library; name: of the file; size: pixels that images are to have, or None. Raises InputError before anything is
    written.
    """
    kind, _, of = given.partition(":")
    if kind not in KINDS or not of:
        raise InputError(f"--import {given}: begins with none of {', '.join(f'{one}:NAME' for one in KINDS)}")
    name, root = name or Path(of).name, Path(root)
    path = root / f"{name}.npz"
    try:
        _check_place(name, path)
        train, test = KINDS[kind](of, dict(options), root)
        arrays = _arrays({"train": train} | ({"test": test} if test is not None else {}), size)
        if sum(array.nbytes for array in arrays.values()) > files.ARCHIVE - HEADS:
            raise InputError(f"has more than the {files.ARCHIVE} bytes that are read of such a file: {SMALLER}")
    except InputError as error:
        raise InputError(f"--import {given}: {error}") from None
    saving.remove_leftovers(path)
    with saving.replacing(path) as file:
        np.savez(file, **arrays)
    return f"{path}: {_described(arrays)}: --dataset {name}"


def _described(arrays):
    """Return in words what is in the arrays of an .npz."""
    n_train, n_test = (len(arrays[f"{part}_labels"]) for part in ("train", "test"))
    train, test = (set(arrays.get(f"{part}_domains", ())) for part in ("train", "test"))
    words = f"{n_train} training and {n_test} test images of {len(arrays['classes'])} classes, "
    words += f"{arrays['train_images'].shape[1]} pixels" + (f", {len(train)} domains" if train else "")
    return words + (f", and {len(test - train)} in the test images alone" if test - train else "")


def _check_place(name, path):
    """Raise InputError unless a dataset of this name can be written there, and be read after that."""
    if name in DATASETS:
        raise InputError(f"the name {name} is a dataset of this program: give another with --as")
    if not NAME.fullmatch(name):
        raise InputError(f"the name {name!r} is not one of letters, digits, dots and hyphens: give another with --as")
    if path.exists():
        raise InputError(f"{path} is there already: remove it, or give another name with --as")
    if any(path.with_suffix("").glob("*/*/*.[pPjJ][nNpP]*")):
        raise InputError(f"{path.with_suffix('')} is a dataset of this name: give another with --as")
    files.check_writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path.parent}: cannot be written to")


# --------------------------------------------------------------------------------------------------------------------
# What libraries have: each function returns the training and the test part, the latter None if there is none. A part
# is a sequence of (image, label) or (image, label, domain), the image one of PIL.


def of_torchvision(name, options, root):
    import torchvision

    found = {one: getattr(torchvision.datasets, one) for one in torchvision.datasets.__all__ if one not in NO_SETS}
    known = [one for one, cls in found.items() if inspect.isclass(cls)]
    if name not in known:
        raise InputError(f"torchvision.datasets has no {name}{did_you_mean(name, known)}")
    build = found[name]
    parameters = _parameters(build)
    wanted = {kind: options.pop(kind) for kind in PARTS if kind in options}
    given = {key: int(value) if value.isdecimal() else value for key, value in options.items()}
    given |= {"download": True} if "download" in parameters else {}
    if wanted and ("train" in parameters or "split" not in parameters):
        raise InputError(f"its parts have no names: leave out {', '.join(f'{one}=' for one in wanted)}")
    if "train" in parameters:
        return [_first(build, root, [given | {"train": kind == "train"}]) for kind in PARTS]
    if "split" not in parameters:
        return _first(build, root, [given]), None
    train, test = _part_names(wanted)
    return [_first(build, root, [given | {"split": which} for which in names]) for names in (train, test)]


def _part_names(wanted):
    """Return what the training part may be called, and the test part: never the same one.

    wanted: {"train": name, "test": name}, as far as they are given. Raises InputError if both are one.
    """
    if len(set(wanted.values())) < len(wanted):
        raise InputError(f"the part {wanted['test']} cannot be trained on and tested on: leave out test=")
    taken = set(wanted.values())
    return [[wanted[kind]] if kind in wanted else [n for n in PARTS[kind] if n not in taken] for kind in PARTS]


def _parameters(build):
    """Return the names of what a class is made with, those of its bases too as far as it hands on what is left."""
    names = set()
    for cls in build.__mro__:
        own = inspect.signature(cls.__init__).parameters
        names.update(own)
        if not any(one.kind is one.VAR_KEYWORD for one in own.values()):
            break
    return names


def _first(build, root, ways):
    """Return build(root, **way) with the first of the ways of which there is a part."""
    error = None
    for way in ways:
        try:
            return build(str(root), **way)
        except (TypeError, ValueError) as refused:  # an option that it does not have; a part that it does not have
            error = error or refused
        except Exception as lost:  # of the network, of the file system, of a package that it needs
            raise InputError(f"could not be fetched, nor is it in {root}: {reason(lost)}") from None
    raise InputError(reason(error))


def of_hugging_face(name, options, root):
    try:
        import datasets
    except ImportError:
        raise InputError("needs Hugging Face's package: pip install datasets") from None
    columns = {kind: options.pop(kind, None) for kind in ("image", "label", "domain")}
    wanted = {kind: options.pop(kind, None) for kind in PARTS}
    try:
        found = datasets.load_dataset(name, **options)
    except Exception as error:  # of its own, of the hub's, of the file system and of the network
        raise InputError(f"could not be loaded: {reason(error)}") from None
    if not isinstance(found, datasets.DatasetDict):
        raise InputError("is read as a whole: leave out split= and streaming=; train=NAME and test=NAME name parts")
    names = _part_names({kind: name for kind, name in wanted.items() if name})
    train, test = (next((one for one in own if one in found), None) for own in names)
    for kind, part in (("train", train), ("test", test)):
        if part is None and (kind == "train" or wanted[kind]):
            raise InputError(f"its parts are {', '.join(found)}: say which is meant, {kind}=NAME")
    features = found[train].features
    columns["image"] = _column("image", columns["image"], features, datasets.Image)
    columns["label"] = _column("label", columns["label"], features, datasets.ClassLabel)
    if columns["domain"] is not None and columns["domain"] not in features:
        raise InputError(f"has no column {columns['domain']}, but {', '.join(features)}")
    return [None if part is None else Rows(found[part], columns) for part in (train, test)]


def _column(kind, given, features, of_class):
    """Return the column of a kind: the one that is given, or the only one of its class, or the one of this name."""
    fitting = [name for name, feature in features.items() if isinstance(feature, of_class)]
    if given is None:
        given = fitting[0] if len(fitting) == 1 else kind if kind in features else None
    if given not in features:
        raise InputError(f"its columns are {', '.join(features)}: say which is meant, {kind}=NAME")
    return given


class Rows:
    """The rows of a Hugging Face dataset, as (image, label) or (image, label, domain)."""

    def __init__(self, rows, columns):
        self.columns = [column for column in columns.values() if column is not None]
        self.rows = rows.select_columns(self.columns)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, place):
        row = self.rows[place]
        return tuple(row[column] for column in self.columns)


def of_medmnist(name, options, root):
    try:
        import medmnist
    except ImportError:
        raise InputError("needs MedMNIST's package: pip install medmnist") from None
    if name not in medmnist.INFO:
        raise InputError(f"medmnist has no {name}{did_you_mean(name, medmnist.INFO)}")
    if medmnist.INFO[name]["task"].startswith("multi-label") or name.endswith("3d"):
        raise InputError("has several labels an image, or images of three dimensions, which no network here takes")
    build, folder = getattr(medmnist, medmnist.INFO[name]["python_class"]), root / "downloads"
    size = options.pop("size", SIZES[0])
    if options or size not in SIZES:
        raise InputError(f"its only option is size={' or '.join(SIZES)}, pixels")
    size = {"size": int(size)}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        parts = {part: build(part, download=True, root=str(folder), **size) for part in ("train", "val", "test")}
    except (OSError, RuntimeError, AssertionError) as error:
        raise InputError(f"could not be fetched, nor is it in {folder}: {reason(error)}") from None
    train = [(image, label.item()) for part in ("train", "val") for image, label in parts[part]]
    return train, [(image, label.item()) for image, label in parts["test"]]


KINDS = {"torchvision": of_torchvision, "hf": of_hugging_face, "medmnist": of_medmnist}

# --------------------------------------------------------------------------------------------------------------------
# What of it is written


def _arrays(parts, size):
    """Return {name: array} for an .npz of the `parts` {"train": part, ...}: images, labels, domains, classes."""
    read = {kind: _read(part, kind, size) for kind, part in parts.items()}
    if len(read["train"][1]) and "test" not in read:
        read = _divided(*read["train"])
    for kind, (_, labels, _) in read.items():
        if not len(labels):
            raise InputError(f"has no {kind} images" + " with one image a class" * ("test" not in parts))
    if len({images.shape[3] for images, *_ in read.values()}) > 1:  # a part of grey ones beside one in colour
        read = {k: (images.repeat(3 // images.shape[3], 3), *more) for k, (images, *more) in read.items()}
    classes, labels = np.unique(read["train"][1], return_inverse=True)
    arrays = {"classes": classes.astype(str)}
    for kind, (images, own, domains) in read.items():
        unknown = set(own.tolist()) - set(classes.tolist())
        if unknown:
            raise InputError(f"no training image has the label {min(unknown)}, but {kind} images: train=, test=NAME")
        arrays[f"{kind}_images"] = images
        arrays[f"{kind}_labels"] = labels if kind == "train" else np.searchsorted(classes, own)
        if domains is not None:
            arrays[f"{kind}_domains"] = domains
    shapes = {images.shape[1:] for images, *_ in read.values()}
    if len(shapes) > 1:
        raise InputError("images of training and test differ in their size: --image_size N")
    return arrays


def _divided(images, labels, domains):
    """Return the parts of one that has no test images: a fifth of every class, and domain, is tested on."""
    numbers = [np.unique(column, return_inverse=True)[1] for column in (labels, domains) if column is not None]
    groups = np.unique(np.stack(numbers), axis=1, return_inverse=True)[1]
    tested = tested_places(torch.from_numpy(groups.reshape(-1))).numpy()
    return {
        kind: tuple(None if array is None else array[chosen] for array in (images, labels, domains))
        for kind, chosen in (("train", ~tested), ("test", tested))
    }


def _read(part, kind, size):
    """Return a part's images uint8 [N, size, size, 1 or 3], its labels [N], and its domains as text [N] or None."""
    from PIL import Image

    images, labels, domains, grey = None, [], [], True
    for place in tqdm(range(len(part)), desc=kind, unit="image", disable=None):
        try:
            image, label, *domain = part[place]
            colours = image.convert("RGB") if isinstance(image, Image.Image) else None
        except Exception as error:  # a damaged image can raise nearly anything
            raise InputError(f"{kind} image {place}: {reason(error)}") from None
        if colours is None or image.mode.startswith(("I", "F")):
            raise InputError(f"{kind} image {place} is no image of 8 bits a channel")
        if None in domain:
            raise InputError(f"{kind} image {place} has no domain")
        if size is None and image.width != image.height:
            raise InputError(f"{kind} image {place} has {image.width} x {image.height} pixels: --image_size N")
        side = size or image.width
        if images is None:
            images = _room(len(part), side)
        if side != images.shape[1]:
            raise InputError(f"{kind} image {place} has {side} pixels a side, others {images.shape[1]}: --image_size N")
        grey = grey and image.mode in ("1", "L")
        if image.size != (side, side):
            colours = colours.resize((side, side), Image.Resampling.BILINEAR)
        images[place] = colours
        labels.append(_label(label, kind, place))
        domains += map(str, domain)
    if images is None:
        return np.empty((0, 1, 1, 1), np.uint8), np.empty(0, np.int64), None
    return images[..., :1] if grey else images, np.array(labels), np.array(domains) if domains else None


def _room(n, side):
    if n * side * side * 3 > files.ARCHIVE:
        raise InputError(f"{n} images of {side} pixels in colour are more than {files.ARCHIVE} bytes: {SMALLER}")
    return np.empty((n, side, side, 3), np.uint8)


def _label(label, kind, place):
    """Return a label as int or str. Raises InputError for what is none, such as several of them, or less than 0."""
    label = label.item() if hasattr(label, "item") and np.ndim(label) == 0 else label
    label = int(label) if isinstance(label, bool) else label
    if not isinstance(label, (int, str)) or (isinstance(label, int) and label < 0):
        raise InputError(f"{kind} image {place} has the label {label!r:.40}, which names no class")
    return label
