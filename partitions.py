"""The split of a training set into clients: IID or Dirichlet over the classes, checked, hashed, saved and reused."""

import hashlib
import json

import torch

from dirichlet import generator, partition_dirichlet
from records import read_json, write_atomic
from utils import InputError, key_seed


def partition_iid(labels, n_clients, rng):
    """Split all of `labels` int64 [N] evenly at random; return a list of n_clients index tensors int64."""
    order = torch.from_numpy(rng.permutation(len(labels)))
    return list(order.tensor_split(n_clients))


def partition(labels, n_clients, dirichlet, seed, min_samples=1, domains=1):
    """Split `labels` int64 [N] by `dirichlet` (a concentration, or "iid") so that each client has `min_samples`.

    Raises InputError if the samples do not suffice, or no draw gives enough to all. domains: how many are split so.
    """
    if n_clients * min_samples > len(labels):
        raise InputError(
            f"{len(labels)} training samples are not enough for {n_clients} clients with at least {min_samples} each: "
            "lower --n_clients or --min_client_samples"
        )
    if dirichlet == "iid":
        return partition_iid(labels, n_clients, generator(seed, 1))
    return partition_dirichlet(labels, n_clients, dirichlet, seed, min_samples, domains)


def partition_by_domain(labels, domains, n_clients, dirichlet, seed, min_samples=1):
    """Give every client samples of one domain: client c of D domains gets a part of domain c modulo D.

    domains int64 [N], every number below D among them. The clients of one domain share it as `partition` shares a
    dataset. Raises InputError if D does not divide n_clients, or as `partition` does.
    """
    n_domains = int(domains.max()) + 1
    if n_clients % n_domains:
        raise InputError(f"--shift feature: --n_clients {n_clients} is no multiple of the {n_domains} domains")
    parts = [None] * n_clients
    for domain in range(n_domains):
        members = (domains == domain).nonzero().flatten()
        own_seed = key_seed(seed, "domain", domain)
        try:
            shares = partition(labels[members], n_clients // n_domains, dirichlet, own_seed, min_samples, n_domains)
        except InputError as error:
            raise InputError(f"--shift feature, domain {domain + 1} of {n_domains}: {error}") from None
        parts[domain::n_domains] = [members[share] for share in shares]
    return parts


def histograms(labels, parts, n_classes):
    """Return the label counts int64 [n_clients, n_classes] of the samples that `parts` really point at."""
    return torch.stack([torch.bincount(labels[part], minlength=n_classes) for part in parts])


def partition_hash(parts):
    """Return the SHA-256 (hex) of a split: which sample belongs to which client, in which order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part.numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def _labels_hash(labels):
    return hashlib.sha256(labels.numpy().astype("<i8").tobytes()).hexdigest()


def save_partition(path, labels, parts, drawn_by):
    """Write a split of `labels`, drawn by the settings `drawn_by` {name: value}, as JSON for `load_partition`."""
    content = {
        "drawn_by": drawn_by,
        "labels_sha256": _labels_hash(labels),
        "clients": [part.tolist() for part in parts],
    }
    write_atomic(path, json.dumps(content))


def load_partition(path, labels, n_clients, min_samples=1):
    """Return the split in `path`. Raises InputError if it is not one of these labels into this many clients.

    A file made by hand holds {"clients": [[position in the training set, ...], ...]} and nothing else.
    """
    parts, labels_hash = _read_partition(path)
    if len(parts) != n_clients:
        raise InputError(f"{path}: splits into {len(parts)} clients, not --n_clients {n_clients}")
    if labels_hash not in (None, _labels_hash(labels)):
        raise InputError(f"{path}: was made for other training data (another --dataset, --seed or --data_root)")
    if not torch.equal(torch.cat(parts).sort().values, torch.arange(len(labels))):
        raise InputError(f"{path}: does not hold every one of the {len(labels)} samples exactly once")
    if min(len(part) for part in parts) < min_samples:
        raise InputError(f"{path}: has a client with fewer samples than --min_client_samples {min_samples}")
    return parts


def partition_file_hash(path):
    """Return the `partition_hash` of the split in a file, of whatever data it is."""
    return partition_hash(_read_partition(path)[0])


def _read_partition(path):
    content = read_json(path)
    try:
        parts = [torch.tensor(part) if part else torch.empty(0, dtype=torch.int64) for part in content["clients"]]
        if not parts or any(part.dtype != torch.int64 or part.dim() != 1 for part in parts):
            raise ValueError
        return parts, content.get("labels_sha256")
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(f"{path}: not a partition file") from None
