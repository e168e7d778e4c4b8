"""Splits in which Dirichlet shares say how much of a class each client holds, and whether one can succeed at all."""

import numpy as np

from fedmerge.partitions.enough import generator, largest, sizes
from fedmerge.registry import partition

FAIR = 0.1  # clients left with too little, in the mean, of what is advised: nine in ten draws succeed
LEVELS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)  # that advice may name


def expected_short(classes, n_clients, alpha, min_samples):
    """Return how many of n_clients a draw leaves with fewer than `min_samples`, in the mean.

    Where a class has few samples for each client and alpha is large, it is an underestimate: the places where classes
    are cut then fall together.
    """
    from scipy.signal import convolve

    chance = np.ones(1)  # of 0, 1, ... samples, below min_samples, of the classes so far
    for size in map(len, classes):
        chance = convolve(chance, _chances(size, n_clients, alpha, min_samples))[:min_samples]
    return n_clients * chance.sum()


def _chances(size, n_clients, alpha, most):
    """Return the chances [most] that a client gets 0, 1, ... of the `size` samples of a class.

    Its share X is of Beta(alpha, (n - 1) alpha), and X * size is rounded up or down, depending on where the cuts fall:
    j samples have the chance E[max(0, 1 - |X * size - j|)], a second difference of E[max(0, t - X * size)].
    """
    from scipy.special import betainc

    t = np.arange(-1, most + 1).clip(0, None)
    x, rest = np.minimum(t / size, 1), (n_clients - 1) * alpha
    below = t * betainc(alpha, rest, x) - size / n_clients * betainc(alpha + 1, rest, x)
    return np.diff(below, 2).clip(0, None)


def advice(classes, n_clients, alpha, seed, min_samples, domains=1):
    """Return in words what would split these classes: fewer clients, or a larger alpha."""

    def does(n, alpha):
        if not expected_short(classes, n, alpha, min_samples) <= FAIR:
            return False
        draws = (dirichlet(classes, n, alpha, generator(seed, number))[1] for number in (1, 2))
        return any(sizes(owners, n).min() >= min_samples for owners in draws)

    n = largest(lambda n: does(n, alpha), n_clients - 1)
    level = next((f"{level:g}" for level in LEVELS if level > alpha and does(n_clients, level)), "iid")
    return f"lower --n_clients to {n * domains}, raise --dirichlet to {level}, or "


@partition("dirichlet", value="positive", title="Dirichlet({value})", advice=advice)
def dirichlet(classes, n_clients, alpha, rng):
    """shares of each class by a symmetric Dirichlet distribution, the same as --dirichlet (Yurochkin et al. 2019)

    The samples of the class are handed out by them, in random order. (Hsu et al. 2019 draw the classes' shares, for
    each client.)
    """
    clients, owners, orders = np.arange(n_clients), [], []
    for members in classes:
        orders.append(rng.permutation(members))
        cuts = np.round(np.cumsum(rng.dirichlet(np.full(n_clients, alpha)))[:-1] * len(members)).astype(np.int64)
        owners.append(np.repeat(clients, np.diff(cuts, prepend=0, append=len(members))))
    return np.concatenate(orders), np.concatenate(owners)
