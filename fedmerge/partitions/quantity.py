"""Splits in which clients differ in how many samples they have."""

import numpy as np

from fedmerge.registry import partition


@partition("quantity", value="positive", title="sizes by Dirichlet({value})")
def quantity(classes, n_clients, alpha, rng):
    """sizes by a symmetric Dirichlet distribution, whatever the classes (NIID-Bench's quantity skew, Li et al. 2022)

    As in their code, all samples in random order are cut where the sums of the shares, rounded down, fall. There the
    shares are drawn again until each client has 10 samples; here, until it has --min_client_samples.
    """
    order = rng.permutation(sum(map(len, classes)))
    cuts = (np.cumsum(rng.dirichlet(np.full(n_clients, alpha)))[:-1] * len(order)).astype(np.int64)
    sizes = np.diff(cuts, prepend=0, append=len(order))
    return order, np.repeat(np.arange(n_clients), sizes)
