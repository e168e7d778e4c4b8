"""The published files of datasets, read as tensors: somebody else's input, so nothing of it is trusted or executed."""

import gzip
import hashlib
import io
import sys
import tarfile
import zlib
from math import prod
from pathlib import Path

import numpy as np
import torch

from fedmerge import files
from fedmerge.datasets import cifar_pickle
from fedmerge.errors import InputError, reason

MAX_BYTES = files.DATA  # of one file, unpacked
MAX_UNPACKED = 2**29  # of all that is in an archive; CIFAR's have 190 MB
SIDES = (4, 512)  # pixels of an image, as networks take them


def warn(message):
    print(f"warning: {message}", file=sys.stderr)


def check_sums(source, blobs):
    """Say so if the files [(bytes, published MD5)] of `source` are not the published ones."""
    if any(hashlib.md5(blob).hexdigest() != md5 for blob, md5 in blobs):
        warn(f"{source} does not hold the published files (their MD5 differs); using it all the same")


def missing(name, root):
    """Return the InputError that says how to get the dataset `name`."""
    return InputError(
        f"no {name} in {root}: run 'python data.py --download {name} --data_root {root}', "
        "or use --dataset DIGITS, which needs no download"
    )


CIFAR_ARCHIVES = {
    "CIFAR10": (
        "cifar-10-python.tar.gz",
        "cifar10/cifar-10-python.tar.gz",
        "cifar-10-batches-py/cifar10.tar.gz",
        "cifar10.tar.gz",
    ),
    "CIFAR100": ("cifar-100-python.tar.gz", "cifar100/cifar-100-python.tar.gz"),
}
CIFAR_LABELS = {"CIFAR10": b"labels", "CIFAR100": b"fine_labels"}


def read_cifar(root, name):
    """Return {"train": (uint8 [N, 3, 32, 32], int64 [N]), "test": ...} of the python version of CIFAR10 or CIFAR100.

    Its folder or its tar.gz lies in the Path `root`. Raises InputError if there is none, or a file of it is damaged.
    """
    import torchvision

    published = getattr(torchvision.datasets, name)
    lists = {"train": published.train_list, "test": published.test_list}
    source, blobs = _cifar_files(
        root, name, published.base_folder, {file for part in lists.values() for file, _ in part}
    )
    parts, sums = {}, []
    for part, listed in lists.items():
        found = {file: blobs[file] for file, _ in listed if file in blobs}
        if not found:
            raise InputError(f"{source}: holds no {part} batch ({', '.join(file for file, _ in listed)})")
        batches = [_cifar_batch(blob, f"{source}/{file}", CIFAR_LABELS[name]) for file, blob in found.items()]
        parts[part] = tuple(map(torch.cat, zip(*batches, strict=True)))
        if len(found) < len(listed):
            absent = ", ".join(file for file, _ in listed if file not in found)
            warn(f"{source} holds a part of {name} only: {absent} missing")
        sums += [(found[file], md5) for file, md5 in listed if file in found]
    check_sums(source, sums)
    return parts


def _cifar_files(root, name, folder, wanted):
    """Return where the dataset lies and {file name: bytes} of its files."""
    for place in (root / folder, root / name.lower() / folder):
        found = [path for path in sorted(place.glob("*")) if path.name in wanted]
        if found:
            return place, {path.name: files.read_bytes(path, files.DATA) for path in found}
    for archive in (root / place for place in CIFAR_ARCHIVES[name]):
        if archive.exists():
            return archive, _read_tar(archive, wanted)
    raise missing(name, root)


def _read_tar(archive, wanted):
    """Return {file name: bytes} of the files in the archive that have a `wanted` name; nothing is written to disk."""
    try:
        with (
            files.open_regular(archive, files.ARCHIVE) as packed,
            gzip.open(packed) as unpacked,
            tarfile.open(fileobj=_Bounded(unpacked), mode="r|") as tar,
        ):
            return {Path(m.name).name: tar.extractfile(m).read() for m in tar if _is_wanted(m, wanted)}
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{archive}: not a whole tar.gz archive ({reason(error)})") from None


def _is_wanted(member, wanted):
    return member.isfile() and Path(member.name).name in wanted and member.size < MAX_BYTES


class _Bounded:
    """Reads a stream that may unpack to anything: MAX_UNPACKED bytes of it, then it is an error."""

    def __init__(self, stream):
        self.stream, self.left = stream, MAX_UNPACKED

    def read(self, size):
        data = self.stream.read(min(size, self.left + 1))
        self.left -= len(data)
        if self.left < 0:
            raise tarfile.ReadError(f"unpacks to more than {MAX_UNPACKED} bytes")
        return data


def _cifar_batch(blob, source, key):
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


def read_idx(root, name):
    """Return {"train": (uint8 [N, 1, H, W], int64 [N]), "test": ...} of the four gzipped IDX files of `name`.

    They lie in the Path `root`, or under it where torchvision puts them. Raises InputError if one is not there or not
    what it should be.
    """
    import torchvision

    published = dict(getattr(torchvision.datasets, name).resources)
    places = (root / name / "raw", root / name, root)
    folder = next((p for p in places if all((p / file).exists() for file in published)), None)
    if folder is None:
        raise missing(name, root)
    blobs = {file: files.read_bytes(folder / file, files.DATA) for file in published}
    check_sums(folder, [(blobs[file], md5) for file, md5 in published.items()])
    parts = {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        names = [f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz"]
        images, labels = (_idx(blobs[name], folder / name) for name in names)
        if images.dim() != 3 or images.shape[1] != images.shape[2] or labels.shape != images.shape[:1]:
            raise InputError(f"{folder / names[0]}: {tuple(images.shape)} images, but labels {tuple(labels.shape)}")
        if not SIDES[0] <= images.shape[1] <= SIDES[1]:
            raise InputError(
                f"{folder / names[0]}: images of {images.shape[1]} pixels a side; {SIDES[0]} to {SIDES[1]} can be used"
            )
        parts[part] = images[:, None], labels.long()
    return parts


def _idx(blob, source):
    """Return the uint8 tensor in gzipped IDX bytes: 0 0 8 d, then d sizes of 4 bytes, big-endian, then the entries."""
    try:
        with gzip.open(io.BytesIO(blob)) as file:
            content = file.read(MAX_BYTES)
        if content[:3] != b"\0\0\x08":
            raise ValueError("not an IDX file of bytes")
        shape = np.frombuffer(content, ">u4", content[3], 4).tolist()
        if not shape or len(content) != 4 + 4 * len(shape) + prod(shape):
            raise ValueError(f"its header says {shape}, but it holds {len(content)} bytes")
        return torch.frombuffer(bytearray(content[4 + 4 * len(shape) :]), dtype=torch.uint8).view(shape)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise InputError(f"{source}: {reason(error)}") from None


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_PIXELS = 2**26  # of one file


def read_folder(folder, size):
    """Return the images of folder/<domain>/<class>/*.png or jpg, in colour and resized to `size` pixels.

    That is images uint8 [N, 3, size, size], labels int64 [N], domains int64 [N], the names of the classes and those of
    the domains, both sorted. Raises InputError if there are none, or one cannot be read.
    """
    found = sorted(p for p in folder.glob("*/*/*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.is_dir())
    if not found:
        raise InputError(f"no images in {folder}: they must lie in {folder}/<domain>/<class>/ as .png or .jpg")
    domains = sorted({path.parts[-3] for path in found})
    classes = sorted({path.parts[-2] for path in found})
    images = torch.empty(len(found), 3, size, size, dtype=torch.uint8)
    for image, path in zip(images, found, strict=True):
        image.copy_(_read_image(path, size))
    labels = torch.tensor([classes.index(path.parts[-2]) for path in found])
    return images, labels, torch.tensor([domains.index(path.parts[-3]) for path in found]), classes, tuple(domains)


def _read_image(path, size):
    from PIL import Image

    try:
        with files.open_regular(path, files.IMAGE) as raw, Image.open(raw, formats=("PNG", "JPEG")) as file:
            if file.width * file.height > MAX_PIXELS:
                raise ValueError(f"{file.width} x {file.height} pixels are too many")
            colours = file.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    except InputError:
        raise
    except Exception as error:  # a damaged image can raise nearly anything
        raise InputError(f"{path}: not an image ({type(error).__name__}: {reason(error)})") from None
    return torch.from_numpy(np.array(colours)).permute(2, 0, 1)
