"""Splits as a run draws them, or reads them."""

from fedmerge.config import split_files
from fedmerge.config.split_files import split_path
from fedmerge.errors import InputError
from fedmerge.partitions.enough import draw_enough
from fedmerge.partitions.saved import load_partition, save_partition
from fedmerge.randomness import key_seed
from fedmerge.registry import said


def split_into_clients(args, train, may_write=True, domains=()):
    """Return each client's indices into the training data.Images; read --partition_file, or write it if it may.

    domains: the names of those that the images are of.
    """
    path, labels = split_path(args), train.labels
    there = path is not None and path.exists()
    drawn_as = split_files.drawn_as(vars(args))
    groups = labels if drawn_as is None else _groups(args, drawn_as, train, domains)
    if (split_files.hand_made(args) is not None) != (drawn_as is None):
        raise InputError(f"{path}: was changed or taken away as the run began: start it again")
    how = (args.n_clients, drawn_as, args.seed, args.min_client_samples)
    if there:
        parts = load_partition(path, labels, args.n_clients, args.min_client_samples)
    elif args.shift == "feature":
        parts = partition_by_domain(labels, train.domains, *how)
    else:
        parts = partition(groups, *how)
    if args.norm == "batch" and 1 in map(len, parts):
        raise InputError("a client has one sample, too few for BatchNorm: --min_client_samples 2, or --norm group")
    if path is not None and may_write and not there:
        save_partition(path, labels, parts, split_files.drawn_split(args))
    return parts


def _groups(args, how, train, names):
    """Return what a partition divides the training data.Images by, int64 [N]: their labels, or their domains."""
    name = how.partition(":")[0]
    if said("partition", name, "of", "classes") == "classes":
        return train.labels
    if args.shift == "feature":
        raise InputError(f"--partition {name} makes the domains of {args.dataset} clients: leave out --shift feature")
    if train.domains is None:
        raise InputError(
            f"--partition {name}: nothing tells whose the images of {args.dataset} are, as the folders of "
            "NAME/<user>/<class>/ do"
        )
    there = set(train.domains.tolist())
    for number, domain in enumerate(names):
        if number not in there:
            raise InputError(f"--partition {name}: no image of {domain} is for training: add some, or take it away")
    return train.domains


def partition(labels, n_clients, how, seed, min_samples=1, domains=1):
    """Split `labels` int64 [N] as --partition has it, "iid" or "dirichlet:0.5", so that each client has `min_samples`.

    Raises InputError if the samples do not suffice, or no draw gives enough to all. domains: how many are split so.
    """
    if n_clients * min_samples > len(labels):
        raise InputError(
            f"{len(labels)} training samples are not enough for {n_clients} clients with at least {min_samples} each: "
            "lower --n_clients or --min_client_samples"
        )
    return draw_enough(how, labels, n_clients, seed, min_samples, domains)


def partition_by_domain(labels, domains, n_clients, how, seed, min_samples=1):
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
            shares = partition(labels[members], n_clients // n_domains, how, own_seed, min_samples, n_domains)
        except InputError as error:
            raise InputError(f"--shift feature, domain {domain + 1} of {n_domains}: {error}") from None
        parts[domain::n_domains] = [members[share] for share in shares]
    return parts
