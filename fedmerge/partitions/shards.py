"""Splits by shards of sorted samples."""

import numpy as np

from fedmerge.errors import InputError
from fedmerge.registry import partition


@partition("shards", value="count", title="{value} shards a client")
def shards(classes, n_clients, k, rng):
    """so many shards a client, cut from the samples sorted by class (McMahan et al. 2017, section 3)

    Shards are of one size, but for one sample where that does not come out even; one may hold the end of a class and
    the beginning of the next.
    """
    n = sum(map(len, classes))
    if n_clients * k > n:
        raise InputError(f"--partition shards:{k}: {n} samples make no {n_clients * k} shards for {n_clients} clients")
    order = np.concatenate([rng.permutation(members) for members in classes])
    sizes = [len(shard) for shard in np.array_split(order, n_clients * k)]
    owners = rng.permutation(np.repeat(np.arange(n_clients), k))
    return order, np.repeat(owners, sizes)
