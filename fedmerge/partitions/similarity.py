"""Splits between equal parts at random and samples sorted by class."""

import numpy as np

from fedmerge.registry import partition


@partition("similarity", value="decay", title="similarity {value}")
def similarity(classes, n_clients, similar, rng):
    """this share of the samples in equal parts at random, the others sorted by class (Karimireddy et al. 2020, sec. 7)

    Of the sorted samples, client 0 has the first, client 1 the next, and so on, as many each. 0 is the most uneven
    split, and 0.1 is what the paper calls 10 % similarity.
    """
    ordered = np.concatenate([rng.permutation(members) for members in classes])
    n, n_alike = len(ordered), round(similar * len(ordered))
    alike = np.zeros(n, bool)
    alike[rng.permutation(n)[:n_alike]] = True
    in_turn = np.arange(n) % n_clients
    owners = np.concatenate([in_turn[:n_alike], np.sort(in_turn[n_alike:])])
    return np.concatenate([rng.permutation(ordered[alike]), ordered[~alike]]), owners
