"""The split of a training set into clients: drawn, or read from a file, checked, hashed and saved."""

import hashlib
import json

import torch

import partition_files
from dirichlet import generator, partition_dirichlet
from records import write_atomic
from utils import InputError, key_seed, split_path


def split_into_clients(args, train, may_write=True):
    """Return each client's indices into the training data.Images; read --partition_file, or write it if it may."""
    path, labels = split_path(args), train.labels
    there = path is not None and path.exists()
    if (partition_files.hand_made(args) is not None) != (args.dirichlet is None):
        raise InputError(f"{path}: was changed or taken away as the run began: start it again")
    how = (args.n_clients, args.dirichlet, args.seed, args.min_client_samples)
    if there:
        parts = load_partition(path, labels, args.n_clients, args.min_client_samples)
    elif args.shift == "feature":
        parts = partition_by_domain(labels, train.domains, *how)
    else:
        parts = partition(labels, *how)
    if args.norm == "batch" and 1 in map(len, parts):
        raise InputError("a client has one sample, too few for BatchNorm: --min_client_samples 2, or --norm group")
    if path is not None and may_write and not there:
        save_partition(path, labels, parts, partition_files.drawn_split(args))
    return parts


# --------------------------------------------------------------------------------------------------------------------
# Drawing


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


# --------------------------------------------------------------------------------------------------------------------
# What a split is


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


# --------------------------------------------------------------------------------------------------------------------
# Files


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
        raise InputError(f"{path}: was made for other training data (another --dataset, --seed or --data_root)")
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
    content = partition_files.read(path)
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
