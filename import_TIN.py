"""Turn the published Tiny-ImageNet-200 folder or zip into two files of tensors that data.py loads.

    python import_TIN.py [--source data/tiny-imagenet-200(.zip)] [--data_root data]

writes tinyimagenet_train_cache.pt and tinyimagenet_val_cache.pt under --data_root, each a dict: images uint8
[N, 3, 64, 64], labels int64 [N], wnids list[str] in the order of the labels.
"""

import argparse
import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from fedmerge import files
from fedmerge.errors import InputError, reason
from fedmerge.saving import write_atomic

ROOT = "tiny-imagenet-200/"  # inside the zip
MAX_BYTES = 2**26  # of one member of it, unpacked; the largest published one has less than 2 MB


class FolderSource:
    """The unpacked dataset: names relative to the folder -> bytes."""

    def __init__(self, path):
        self.path = path
        self.names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if not p.is_dir())

    def read(self, name):
        return files.read_bytes(self.path / name, MAX_BYTES)


class ZipSource:
    """The published archive, read in place: names relative to tiny-imagenet-200/ -> bytes."""

    def __init__(self, path):
        try:
            self.archive = zipfile.ZipFile(files.open_regular(path, files.ARCHIVE))
        except InputError:
            raise
        except Exception as error:  # each way its directory can be broken has its own exception
            raise InputError(f"{path}: not a zip archive ({reason(error)})") from None
        self.path = path
        self.names = sorted(n.removeprefix(ROOT) for n in self.archive.namelist() if not n.endswith("/"))

    def read(self, name):
        name = ROOT + name if ROOT + name in self.archive.NameToInfo else name
        if self.archive.getinfo(name).file_size > MAX_BYTES:
            raise InputError(f"{self.path}: {name} unpacks to more than {MAX_BYTES} bytes")
        return self.archive.read(name)  # no more than that size: zipfile checks it


def open_source(path):
    """Return the FolderSource or ZipSource at `path`; without a path's zip suffix either may be meant."""
    path = Path(path)
    if path.is_dir():
        return FolderSource(path)
    for candidate in (path, path.with_name(path.name + ".zip")):
        if candidate.exists():
            return ZipSource(candidate)
    raise InputError(
        f"no {path}: get http://cs231n.stanford.edu/tiny-imagenet-200.zip into {path.parent}, or name it with --source"
    )


def list_images(source):
    """Return (training [(name, label)], validation [(name, label)], wnids) of the dataset in `source`."""
    wnids = sorted(_text(source, "wnids.txt").split())
    label = {wnid: i for i, wnid in enumerate(wnids)}
    train = []
    for name in source.names:
        parts = name.split("/")
        if parts[0] == "train" and len(parts) == 4 and parts[2] == "images" and name.upper().endswith(".JPEG"):
            if parts[1] not in label:
                raise InputError(f"{source.path}: {name} is of a class that wnids.txt does not list")
            train.append((name, label[parts[1]]))
    val = []
    for number, line in enumerate(_text(source, "val/val_annotations.txt").rstrip().splitlines(), start=1):
        words = line.split("\t")
        if len(words) < 2 or words[1] not in label:
            raise InputError(f"{source.path}: line {number} of val/val_annotations.txt names no class of wnids.txt")
        val.append((f"val/images/{words[0]}", label[words[1]]))
    for part, found in (("training", train), ("validation", val)):
        if not found:
            raise InputError(f"{source.path}: holds no {part} images of Tiny-ImageNet")
    return train, val, wnids


def _text(source, name):
    if name not in source.names:
        raise InputError(f"{source.path}: holds no {name}, so it is not Tiny-ImageNet-200")
    try:
        return source.read(name).decode()
    except InputError:
        raise
    except Exception as error:  # each way a zip member can be broken has its own exception
        raise InputError(f"{source.path}: {name} cannot be read ({reason(error)})") from None


def read_images(source, entries, title):
    """Return images uint8 [N, 3, 64, 64] and labels int64 [N] of `entries` [(name, label)], with a progress bar.

    Raises InputError naming the first image that is missing, broken or of another size.
    """
    images = torch.empty(len(entries), 3, 64, 64, dtype=torch.uint8)
    for i, (name, _) in enumerate(tqdm(entries, desc=title, unit="image", disable=None)):
        try:
            with Image.open(io.BytesIO(source.read(name))) as image:
                if image.size != (64, 64):
                    raise ValueError(f"is {image.size[0]}x{image.size[1]} pixels, not 64x64")
                colours = np.array(image.convert("RGB"))  # some are greyscale
                images[i] = torch.from_numpy(colours).permute(2, 0, 1)
        except FileNotFoundError:
            raise InputError(f"{source.path}: image {name} is missing") from None
        except InputError:
            raise
        except Exception as error:  # each way a JPEG or a zip member can be broken has its own exception
            wrong = "is missing" if isinstance(error, KeyError) else f"cannot be read ({error})"
            raise InputError(f"{source.path}: image {name} {wrong}") from None
    return images, torch.tensor([label for _, label in entries])


def write_caches(source_path, data_root):
    """Write both caches under `data_root`; return their paths. Nothing is written unless every image is good."""
    caches = {part: Path(data_root) / f"tinyimagenet_{part}_cache.pt" for part in ("train", "val")}
    files.check_writable(*caches.values())
    source = open_source(source_path)
    train, val, wnids = list_images(source)
    parts = {"train": read_images(source, train, "training"), "val": read_images(source, val, "validation")}
    for part, (images, labels) in parts.items():
        file = io.BytesIO()
        torch.save({"images": images, "labels": labels, "wnids": wnids}, file)
        write_atomic(caches[part], file.getvalue())
        print(f"{caches[part]}: {len(labels)} images of {len(wnids)} classes")
    return list(caches.values())


def main():
    parser = argparse.ArgumentParser(description="Cache Tiny-ImageNet-200 as tensors.")
    parser.add_argument("--source", help="folder or zip as published [DATA_ROOT/tiny-imagenet-200, or its .zip]")
    parser.add_argument("--data_root", default="data", help="folder to write to [data]")
    args = parser.parse_args()
    try:
        write_caches(args.source or Path(args.data_root) / "tiny-imagenet-200", args.data_root)
    except (InputError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
