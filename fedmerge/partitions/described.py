"""What a split is: its label counts, its hash, and a line of words."""

import hashlib

import torch


def histograms(labels, parts, n_classes):
    """Return the label counts int64 [n_clients, n_classes] of the samples that `parts` really point at."""
    owners = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part) for part in parts]))
    cells = owners * n_classes + labels[torch.cat(parts)]
    return torch.bincount(cells, minlength=len(parts) * n_classes).view(len(parts), n_classes)


def described(table, n_labels):
    """Return in words what a split of n_labels training samples is, given its `histograms`."""
    sizes, classes = table.sum(1), (table > 0).sum(1)
    holds = sizes > 0
    words = f"{len(table)} clients, samples {_spread(sizes[holds])}, classes {_spread(classes[holds])} (min/median/max)"
    if not holds.all():
        words += f", {int((~holds).sum())} clients without samples, not counted"
    left = n_labels - int(sizes.sum())
    return words + (f", {left} of {n_labels} samples unused" if left else "")


def _spread(counts):
    return f"{int(counts.min())}/{int(counts.median())}/{int(counts.max())}"


def partition_hash(parts):
    """Return the SHA-256 (hex) of a split: which sample belongs to which client, in which order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part.numpy().astype("<i8").tobytes())
    return digest.hexdigest()
