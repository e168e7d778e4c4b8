"""Splits in files, checked as they are read."""

import hashlib
import json

import torch

from fedmerge.config import split_files
from fedmerge.errors import InputError
from fedmerge.partitions.described import partition_hash
from fedmerge.saving import write_atomic


def labels_hash(labels):
    """Return the SHA-256 (hex) of `labels` int64 [N] in their order.

    It tells another seed, which cuts off other images for validation, and nearly every other dataset; not other images
    of the same classes in the same order, as two folders with as many images of each class have.
    """
    return hashlib.sha256(labels.numpy().astype("<i8").tobytes()).hexdigest()


def save_partition(path, labels, parts, drawn_by):
    """Write a split of `labels`, drawn by the settings `drawn_by` {name: value}, as JSON for `load_partition`."""
    content = {
        "drawn_by": drawn_by,
        "labels_sha256": labels_hash(labels),
        "clients": [part.tolist() for part in parts],
    }
    write_atomic(path, json.dumps(content))


def load_partition(path, labels, n_clients, min_samples=1):
    """Return the split in `path`. Raises InputError if it is not one of these labels into this many clients."""
    content = _read(path)
    if len(content["clients"]) != n_clients:
        raise InputError(f"{path}: splits into {len(content['clients'])} clients, not --n_clients {n_clients}")
    if content.get("labels_sha256") != labels_hash(labels):
        raise InputError(
            f"{path}: was made for other training data (another --dataset, --seed, --data_root or --no-validation)"
        )
    parts = _checked_parts(path, content, len(labels))
    if min(len(part) for part in parts) < min_samples:
        raise InputError(
            f"{path}: has a client with fewer samples than --min_client_samples {min_samples} (0 allows any)"
        )
    return parts


def stamp_partition(path, labels, made_for):
    """Write the hash of `labels` int64 [N] and the settings `made_for` {name: value} into the split file at `path`;
    return each client's indices.

    Raises InputError if it does not split N samples, or was stamped for other labels.
    """
    content = _read(path)
    parts = _checked_parts(path, content, len(labels))
    stamps = {"made_for": made_for, "labels_sha256": labels_hash(labels)}
    if content.get("labels_sha256", stamps["labels_sha256"]) != stamps["labels_sha256"]:
        earlier = " ".join(f"--{name} {value}" for name, value in content.get("made_for", {}).items())
        raise InputError(f"{path}: belongs to other labels already ({earlier or 'by their hash'})")
    if not content.get("drawn_by") or "labels_sha256" not in content:
        clients = content.pop("clients")
        write_atomic(path, json.dumps({**content, **stamps, "clients": clients}))
    return parts


def partition_file_hash(path):
    """Return the `partition_hash` of the split in a file, of whatever data it is."""
    return partition_hash(_parts(_read(path)))


def _read(path):
    content = split_files.read(path)
    if content is None:
        raise InputError(f"{path}: no such file")
    return content


def _parts(content):
    return [torch.tensor(part, dtype=torch.int64) for part in content["clients"]]


def _checked_parts(path, content, n):
    """Return the parts in the content of a file. Raises InputError unless they share out n samples."""
    parts = _parts(content)
    held = torch.cat(parts)
    outside = held[(held < 0) | (held >= n)]
    if len(outside):
        raise InputError(f"{path}: position {int(outside[0])} is none of the {n} training samples, 0 to {n - 1}")
    counts = torch.bincount(held, minlength=n)
    if counts.max() > 1:
        raise InputError(f"{path}: position {int(counts.argmax())} is in it {int(counts.max())} times")
    if not len(held):
        raise InputError(f"{path}: no client has a sample")
    if len(held) < n and not content.get("unused", False):
        raise InputError(
            f'{path}: {n - len(held)} of the {n} training samples belong to no client: write "unused": true into it '
            "if that is meant"
        )
    return parts
