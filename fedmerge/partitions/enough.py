"""Draws of a split, until every client has enough samples; and what would do where none does."""

import functools
import math
import random

import numpy as np
import torch

from fedmerge.config.kinds import split_of
from fedmerge.config.split_files import split_title
from fedmerge.declared import mistake
from fedmerge.errors import InputError
from fedmerge.python_source import HERE
from fedmerge.randomness import key_seed
from fedmerge.registry import PARTITIONS

MAX_DRAWS = 1000
WORK = 5 * 10**7  # samples shuffled and shares drawn before a split is given up: half a second to two of one core


def draw_enough(how, labels, n_clients, seed, min_samples=1, domains=1):
    """Split `labels` int64 [N] as --partition has it, such as "labels:2", into a list of n_clients index tensors int64.

    Draws are repeated until each client has `min_samples`, which conditions their distribution. Raises InputError, and
    says what would do, if that cannot be expected, or no draw within WORK did it. domains: how many are split so, each
    into n_clients.
    """
    spec, value = split_of(how)
    draw, classes, short = PARTITIONS[spec.name], by_class(labels), 0
    most = max(10, min(MAX_DRAWS, WORK // (len(labels) + len(classes) * n_clients)))
    for number in range(1, most + 1):
        drawn = draw(classes, n_clients, value, generator(seed, number))
        positions, owners = checked(draw, drawn, len(labels), n_clients)
        if number == 1 and not spec.file.is_relative_to(HERE):
            check_keyed(draw, (positions, owners), lambda: draw(classes, n_clients, value, generator(seed, 1)))
        totals = sizes(owners, n_clients)
        if totals.min() >= min_samples:
            ordered = torch.from_numpy(positions[np.argsort(owners, kind="stable")])
            return list(ordered.split(totals.tolist()))
        short += int((totals < min_samples).sum())
        if is_hopeless(short, number, most):
            break
    advice = draw.registered.get("advice", functools.partial(fewer_clients, draw))
    few = max(1, round(short / number))
    raise InputError(
        f"a split with {split_title(how)} leaves about {few} of {n_clients} clients with fewer than "
        f"--min_client_samples {min_samples} ({number} drawn): "
        + advice(classes, n_clients, value, seed, min_samples, domains)
        + "lower --min_client_samples (0 allows clients without samples)"
    )


def checked(draw, drawn, n, n_clients):
    """Return (positions, owners), as `draw` drew them among n samples; raise InputError if they are no split."""
    positions, owners = drawn if isinstance(drawn, tuple) and len(drawn) == 2 else (None, None)
    for array in (positions, owners):
        whole = isinstance(array, np.ndarray) and np.issubdtype(array.dtype, np.integer)
        if not whole or array.ndim != 1 or len(array) != len(positions):
            raise mistake(draw, "returns no (positions, owners), two arrays [M] of NumPy with whole numbers")
    for name, array, end in (("positions", positions, n), ("owners", owners, n_clients)):
        if len(array) and not 0 <= array.min() <= array.max() < end:
            raise mistake(draw, f"{name} go from {array.min()} to {array.max()}, not from 0 to {end - 1}")
    if len(positions) and np.bincount(positions).max() > 1:
        raise mistake(draw, f"the sample at {np.bincount(positions).argmax()} has several owners, or one twice")
    return positions, owners


def check_keyed(draw, drawn, again):
    """Raise InputError unless `again()` draws what was `drawn`: with the rng that is handed over, nothing else matters.

    The generators of torch, NumPy and Python that all share are moved meanwhile, and put back afterwards.
    """
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        torch.default_generator.manual_seed(len(drawn[0]) + 1)  # that of the CPU alone, which is put back
        np.random.seed(len(drawn[0]) + 1)
        random.seed(len(drawn[0]) + 1)
        other = again()
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
    if not all(np.array_equal(one, two) for one, two in zip(drawn, other, strict=True)):
        raise mistake(draw, "draws another split from the same rng: take all that is drawn from it, and nothing else")


def by_class(labels):
    """Return the positions of each class in `labels` int64 [N], a list of ascending int64 arrays."""
    labels = labels.numpy()
    return [np.flatnonzero(labels == c) for c in np.unique(labels)]


def sizes(owners, n_clients):
    """Return how many samples each client has, int64 [n_clients]; owners int64 [N]: the client of each."""
    return np.bincount(owners, minlength=n_clients)


def generator(seed, number):
    """Return the NumPy generator of the draw of this number, from 1."""
    return np.random.default_rng(key_seed(seed, "partition", number - 1))


def is_hopeless(short, n, most):
    """Tell whether none of `most` draws will do, but for 1 chance in 1,000, if n of them left `short` clients short.

    Shares of a Dirichlet distribution are negatively associated (Joag-Dev and Proschan 1983): with a mean of m such
    clients there is none with a chance of at most exp(-m), and their number deviates no more than a Poisson's. Of other
    partitions it is a rule of thumb.
    """
    return short - 4 * math.sqrt(short) > n * math.log(1000 * most)


def fewer_clients(draw, classes, n_clients, value, seed, min_samples, domains=1):
    """Return in words with how many clients two draws have enough for each, "" if with none."""

    def does(n):
        try:
            owners = [draw(classes, n, value, generator(seed, number))[1] for number in (1, 2)]
        except InputError:
            return False
        return all(sizes(of, n).min() >= min_samples for of in owners)

    n = largest(does, n_clients - 1)
    return f"lower --n_clients to {n * domains}, or " if does(n) else ""


def largest(does, high):
    """Return the largest whole number up to `high` that `does`, if all below one that does do; at least 1."""
    low = 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if does(middle) else (low, middle - 1)
    return low
