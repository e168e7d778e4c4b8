"""A file of arrays, NAME.npz: images and labels as Keras keeps its datasets, or as MedMNIST publishes them."""

import zipfile
from dataclasses import replace

import numpy as np
import torch

from fedmerge import files
from fedmerge.datasets.images import Images
from fedmerge.errors import InputError, reason

LAYOUTS = (  # {part: (images, labels)}; whose names are all there decides
    {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")},
    {"train": ("train_images", "train_labels"), "test": ("test_images", "test_labels")},
)
VALIDATION = ("val_images", "val_labels")  # of the latter; they become part of the training set, as the split is ours


def load_arrays(path):
    """Return (training Images, test Images, number of classes, names of the domains) of an .npz file.

    It has the arrays x_train, y_train, x_test, y_test or train_images, train_labels, test_images, test_labels: images
    uint8 [N, H, H] or [N, H, H, 1 or 3], labels whole numbers [N] or [N, 1] from 0. Besides, it may have train_domains
    and test_domains, [N], the former for the images published for validation, too: whose an image is, text or numbers.
    Raises InputError for any other.
    """
    try:
        with files.open_regular(path, files.ARCHIVE) as file:
            _check_sizes(file)
            with np.load(file, allow_pickle=False) as found:
                return _of_arrays(found)
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
    except Exception as error:  # zipfile, its compressors and numpy have an exception of its own for each way to be bad
        raise InputError(f"{path}: is no .npz of arrays ({reason(error)})") from None


def _check_sizes(file):
    """Raise InputError if the arrays unpack to more than is read of such a file."""
    with zipfile.ZipFile(file) as archive:
        size = sum(record.file_size for record in archive.infolist())
    if size > files.ARCHIVE:
        raise InputError(f"unpacks to {size} bytes, more than the {files.ARCHIVE} that are read of such a file")
    file.seek(0)


def _of_arrays(found):
    """Return what `load_arrays` does, of arrays by their names. Raises InputError."""
    layout = next((one for one in LAYOUTS if {name for pair in one.values() for name in pair} <= set(found)), None)
    if layout is None:
        wanted = " or ".join(", ".join(name for pair in one.values() for name in pair) for one in LAYOUTS)
        raise InputError(f"has {', '.join(sorted(found)) or 'nothing'}, but not {wanted}")
    train, test = (_images(found, *layout[part]) for part in ("train", "test"))
    if layout is LAYOUTS[1] and set(VALIDATION) <= set(found):
        more = _images(found, *VALIDATION)
        if more.images.shape[1:] != train.images.shape[1:]:
            raise InputError("images of training and validation differ in their shape")
        train = Images(*(torch.cat(pair) for pair in ((train.images, more.images), (train.labels, more.labels))))
    if train.images.shape[1:] != test.images.shape[1:]:
        raise InputError("images of training and test differ in their shape")
    n_classes = max((int(part.labels.max()) + 1 for part in (train, test) if len(part)), default=0)
    absent = (torch.bincount(train.labels, minlength=n_classes) == 0).nonzero().flatten().tolist()
    if absent:
        raise InputError(f"no training image has the label {absent[0]}, though there are labels up to {n_classes - 1}")
    parts, names = _with_domains(found, {"train": train, "test": test})
    return parts["train"], parts["test"], n_classes, names


def _with_domains(found, parts):
    """Return the parts {name: Images} with the domains that the arrays have, and the names of these."""
    arrays = {part: np.asarray(found[f"{part}_domains"]) for part in parts if f"{part}_domains" in found}
    if not arrays:
        return parts, ()
    for part, images in parts.items():
        own = arrays.get(part)
        if own is None or own.dtype.kind not in "iuU" or own.shape != (len(images),):
            said = "missing" if own is None else f"{own.dtype} {list(own.shape)}"
            raise InputError(f"{part}_domains is {said}, not text or whole numbers [{len(images)}]: one an image")
    if len({own.dtype.kind for own in arrays.values()}) > 1:  # lest numbers of two kinds meet as floats
        arrays = {part: own.astype(str) for part, own in arrays.items()}
    names = np.unique(np.concatenate(list(arrays.values())))
    numbers = {part: torch.from_numpy(np.searchsorted(names, own)) for part, own in arrays.items()}
    parts = {part: replace(images, domains=numbers[part]) for part, images in parts.items()}
    return parts, tuple(map(str, names))


def _images(found, images, labels):
    """Return the Images of two arrays, by their names. Raises InputError."""
    x, y = np.asarray(found[images]), np.asarray(found[labels])  # what is no .npy comes as bytes
    x = x[..., None] if x.ndim == 3 else x
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] not in (1, 3) or x.shape[1] != x.shape[2]:
        said = f"{x.dtype} {list(np.shape(found[images]))}"
        raise InputError(f"{images} is {said}, not uint8 [N, H, H] or [N, H, H, 1 or 3]")
    if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
        raise InputError(f"{labels} is {y.dtype} {list(y.shape)}, not whole numbers [{len(x)}]: one an image")
    if len(y) and (y.min() < 0 or y.max() >= 2**20):
        raise InputError(f"{labels} has {y.min()} to {y.max()}: labels count from 0")
    return Images(torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(y.astype(np.int64)))
