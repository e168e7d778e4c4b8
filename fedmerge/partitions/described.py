"""What a split is: its label counts, how uneven these are, its hash, and a line of words."""

import hashlib
import math

import torch


def histograms(labels, parts, n_classes):
    """Return the label counts int64 [n_clients, n_classes] of the samples that `parts` really point at."""
    owners = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part) for part in parts]))
    cells = owners * n_classes + labels[torch.cat(parts)]
    return torch.bincount(cells, minlength=len(parts) * n_classes).view(len(parts), n_classes)


COMPARED = 500  # clients of which all pairs are compared, evenly spread among more


def skew(table):
    """Return how uneven a split is, {name: number}, of its `histograms` int64 [n_clients, n_classes]; clients without
    samples do not count.

    hellinger, jensen_shannon: the mean distance of two clients' shares of the classes, from 0 to 1: the square root of
    1 - sum sqrt(p q), and of the divergence in bits. effective_classes: the mean over clients of the exponential of
    their shares' entropy: k for k classes in equal parts. size_gini: Gini coefficient of the clients' sizes, 0 where
    all are equal.
    """
    counts = table[table.sum(1) > 0].double()
    sizes, n = counts.sum(1).sort().values, len(counts)
    shares = counts / counts.sum(1, keepdim=True)
    some = shares[torch.linspace(0, n - 1, min(n, COMPARED)).round().long()]
    n_pairs = max(1, len(some) * (len(some) - 1))
    hellinger = (1 - some.sqrt() @ some.sqrt().T).clamp_min(0).sqrt()
    entropy, divergence = _entropy(some), 0.0
    for i, (p, own) in enumerate(zip(some, entropy, strict=True), 1):  # from all clients behind it
        between = _entropy((p + some[i:]) / 2) - (own + entropy[i:]) / 2
        divergence += 2 * (between / math.log(2)).clamp_min(0).sqrt().sum()
    rank = torch.arange(1, n + 1, dtype=sizes.dtype)
    return {
        "hellinger": float(hellinger.fill_diagonal_(0).sum() / n_pairs),
        "jensen_shannon": float(divergence / n_pairs),
        "effective_classes": float(_entropy(shares).exp().mean()),
        "size_gini": float((2 * rank - n - 1) @ sizes / (n * sizes.sum())),
    }


def _entropy(shares):
    return -torch.xlogy(shares, shares).sum(-1)


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
