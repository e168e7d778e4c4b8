"""Splits in which Dirichlet shares say how much of a class each client holds, and whether one can succeed at all."""

import math

import numpy as np
import torch

from fedmerge.errors import InputError
from fedmerge.randomness import key_seed

MAX_DRAWS = 1000
WORK = 5 * 10**7  # samples shuffled and shares drawn before a split is given up: half a second to two of one core
FAIR = 0.1  # clients left with too little, in the mean, of what is advised: nine in ten draws succeed
LEVELS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)  # that advice may name


def by_class(labels):
    """Return the positions of each class in `labels` int64 [N], a list of ascending int64 arrays."""
    labels = labels.numpy()
    return [np.flatnonzero(labels == c) for c in np.unique(labels)]


def draw(classes, n_clients, alpha, rng):
    """For each class draw the clients' shares from a symmetric Dirichlet(alpha), and hand out its samples by them, in
    random order (as Yurochkin et al. 2019; Hsu et al. 2019 draw the classes' shares, for each client).

    classes: the positions of each. Returns (positions int64 [N], the client of each int64 [N], the number of samples of
    each client int64 [n_clients]).
    """
    clients, owners, totals = np.arange(n_clients), [], np.zeros(n_clients, np.int64)
    orders = []
    for members in classes:
        orders.append(rng.permutation(members))
        cuts = np.round(np.cumsum(rng.dirichlet(np.full(n_clients, alpha)))[:-1] * len(members)).astype(np.int64)
        counts = np.diff(cuts, prepend=0, append=len(members))
        owners.append(np.repeat(clients, counts))
        totals += counts
    return np.concatenate(orders), np.concatenate(owners), totals


def parts_of(positions, owners, totals):
    """Return the index tensor int64 of each client, of what `draw` returned."""
    return list(torch.from_numpy(positions[np.argsort(owners, kind="stable")]).split(totals.tolist()))


def partition_dirichlet(labels, n_clients, alpha, seed, min_samples=1, domains=1):
    """Split `labels` int64 [N] into a list of n_clients index tensors int64 that hold every position once.

    Draws are repeated until each client has `min_samples`, which conditions their distribution. Raises InputError, and
    says what would do, if that cannot be expected, or no draw within WORK did it. domains: how many are split so, each
    into n_clients.
    """
    classes, short = by_class(labels), 0
    most = max(10, min(MAX_DRAWS, WORK // (len(labels) + len(classes) * n_clients)))
    for number in range(1, most + 1):
        *drawn, totals = draw(classes, n_clients, alpha, generator(seed, number))
        if totals.min() >= min_samples:
            return parts_of(*drawn, totals)
        short += int((totals < min_samples).sum())
        if is_hopeless(short, number, most):
            break
    raise InputError(
        f"a Dirichlet({alpha:g}) split leaves about {max(1, round(short / number))} of {n_clients} clients with fewer "
        f"than --min_client_samples {min_samples} ({number} drawn): "
        + advice(classes, n_clients, alpha, seed, min_samples, domains)
    )


def is_hopeless(short, n, most):
    """Tell whether none of `most` draws will do, but for 1 chance in 1,000, if n of them left `short` clients short.

    Shares of a Dirichlet distribution are negatively associated (Joag-Dev and Proschan 1983): with a mean of m such
    clients there is none with a chance of at most exp(-m), and their number deviates no more than a Poisson's.
    """
    return short - 4 * math.sqrt(short) > n * math.log(1000 * most)


def generator(seed, number):
    """Return the NumPy generator of the draw of this number, from 1."""
    return np.random.default_rng(key_seed(seed, "partition", number - 1))


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
    """Return in words what would split these classes: fewer clients, a larger alpha, or fewer samples for each."""

    def does(n, alpha):
        if not expected_short(classes, n, alpha, min_samples) <= FAIR:
            return False
        return any(draw(classes, n, alpha, generator(seed, i))[2].min() >= min_samples for i in (1, 2))

    n = largest(lambda n: does(n, alpha), n_clients - 1)
    level = next((f"{level:g}" for level in LEVELS if level > alpha and does(n_clients, level)), "iid")
    return (
        f"lower --n_clients to {n * domains}, raise --dirichlet to {level}, or lower --min_client_samples (0 allows "
        "clients without samples)"
    )


def largest(does, high):
    """Return the largest whole number up to `high` that `does`, if all below one that does do; at least 1."""
    low = 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if does(middle) else (low, middle - 1)
    return low
