"""Splits in which a client has few classes."""

import numpy as np

from fedmerge.errors import InputError
from fedmerge.registry import partition


@partition("labels", value="count", title="{value}-label clients")
def labels(classes, n_clients, k, rng):
    """so many classes a client (NIID-Bench's #C, Li et al. 2022)

    The rule is that of their code: client i has class i modulo C and k - 1 others at random; a class is split evenly,
    at random, among its clients. (McMahan et al. 2017 deal shards of sorted samples, which may hold two classes.) With
    fewer clients than classes, where theirs fails, the classes that are nobody's first are dealt before the others.
    """
    n_classes, least = len(classes), -(-len(classes) // n_clients)
    if not least <= k <= n_classes:
        raise InputError(f"--partition labels:{k}: each of {n_clients} clients can have {least} to {n_classes} classes")
    clients = np.arange(n_clients)
    rank = rng.random((n_clients, n_classes))  # a client has the k classes of its lowest
    rank[clients, clients % n_classes] = -1
    dealt = rng.permutation(np.repeat(clients, k - 1))[: max(0, n_classes - n_clients)]
    rank[dealt, np.arange(n_clients, n_clients + len(dealt))] = -1
    holds = np.zeros(rank.shape, bool)
    np.put_along_axis(holds, np.argpartition(rank, k - 1, axis=1)[:, :k], True, axis=1)
    owners = [np.resize(np.flatnonzero(own), len(c)) for own, c in zip(holds.T, classes, strict=True)]
    return np.concatenate([rng.permutation(c) for c in classes]), np.concatenate(owners)
