"""Even splits at random."""

import numpy as np

from fedmerge.registry import partition


@partition("iid", title="IID")
def iid(classes, n_clients, value, rng):
    """equal parts at random (McMahan et al. 2017, section 3)"""
    order = rng.permutation(sum(map(len, classes)))
    return order, np.sort(np.arange(len(order)) % n_clients)
