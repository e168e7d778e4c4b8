"""Splits in which a client has few classes, in uneven shares."""

import numpy as np

from fedmerge.errors import InputError
from fedmerge.registry import partition


@partition("extended", value="count,positive", title="{value[0]}-label clients, Dirichlet({value[1]})")
def extended(classes, n_clients, value, rng):
    """so many classes a client at random, each class in Dirichlet shares among those that have it (Li and Lyu 2023)

    "Extended Dirichlet", ExDir(C, alpha). Each class is given to at least half as many clients as in the mean, rounded
    down, and to one.

    Differs from their code, which draws all clients' classes again until that is so: here places of classes that have
    more than enough clients are given to those that have too few, so that few clients suffice.
    """
    k, alpha = value
    n_classes = len(classes)
    if not -(-n_classes // n_clients) <= k <= n_classes:
        least = -(-n_classes // n_clients)
        raise InputError(
            f"--partition extended:{k},{alpha}: each of {n_clients} clients can have {least} to {n_classes} classes"
        )
    holds = _deal(n_clients, n_classes, k, rng)
    owners, orders = [], []
    for members, own in zip(classes, holds.T, strict=True):
        clients = np.flatnonzero(own)
        cuts = np.round(np.cumsum(rng.dirichlet(np.full(len(clients), alpha)))[:-1] * len(members)).astype(np.int64)
        owners.append(np.repeat(clients, np.diff(cuts, prepend=0, append=len(members))))
        orders.append(rng.permutation(members))
    return np.concatenate(orders), np.concatenate(owners)


def _deal(n_clients, n_classes, k, rng):
    """Return who holds which class, bool [n_clients, n_classes]: k of each client, enough of each class."""
    holds = np.zeros((n_clients, n_classes), bool)
    drawn = rng.random(holds.shape).argpartition(k - 1, axis=1)[:, :k]
    np.put_along_axis(holds, drawn, True, axis=1)
    enough = max(n_clients * k // n_classes // 2, 1)
    for poor in range(n_classes):
        while holds[:, poor].sum() < enough:
            rich = holds.sum(0) > enough  # there is one, since the mean is not below enough
            givers = np.argwhere(holds & rich & ~holds[:, [poor]])
            client, given = givers[rng.integers(len(givers))]
            holds[client, given], holds[client, poor] = False, True
    return holds
