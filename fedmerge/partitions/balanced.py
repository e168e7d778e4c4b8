"""Splits in which clients have as many samples as one another, of different classes."""

import numpy as np

from fedmerge.registry import partition

AT_ONCE = 512  # classes drawn before it is looked which are used up


@partition("balanced", value="positive", title="balanced Dirichlet({value})")
def balanced(classes, n_clients, alpha, rng):
    """equal sizes; each client's mix of classes by a symmetric Dirichlet distribution (Hsu et al. 2019, section 3)

    Places are filled in random order, each by a class of its client's mix, until the class is used up: from then on by
    one of the others, in the ratios of the mix. So the last places are filled by what is left.

    Differs from the paper: their alpha is this times the number of classes. Differs from the code of FedDyn, whose
    alpha it is: there clients come in another order, so that a little more is left to those that are filled last.
    """
    left = np.array([len(members) for members in classes])
    owners = rng.permutation(np.resize(np.arange(n_clients), left.sum()))
    log_mix = _log_dirichlet(alpha, (n_clients, len(classes)), rng)
    drawn = []
    while left.any():
        begin = sum(map(len, drawn))
        now = owners[begin : begin + AT_ONCE]
        scores = np.where(left > 0, log_mix[now] + rng.gumbel(size=(len(now), len(left))), -np.inf)
        chosen = scores.argmax(1)  # of logarithms and Gumbel noise: by the ratios of the mix
        seen = (chosen[:, None] == np.arange(len(left))).cumsum(0)
        full = (seen >= left) & (left > 0)
        end = full.any(1).argmax() + 1 if full.any() else len(now)  # those behind it are drawn anew
        drawn.append(chosen[:end])
        left -= seen[end - 1]
    drawn = np.concatenate(drawn)
    positions = np.empty(len(owners), np.int64)
    for c, members in enumerate(classes):
        positions[drawn == c] = rng.permutation(members)
    return positions, owners


def _log_dirichlet(alpha, shape, rng):
    """Return logarithms of Dirichlet(alpha) draws along the last axis, up to a constant each; none is -inf.

    With small alpha shares are below the least float. A draw of Gamma(alpha) is one of Gamma(alpha + 1) times
    U^(1 / alpha), U uniform.
    """
    return np.log(rng.gamma(alpha + 1, size=shape)) + np.log1p(-rng.random(shape)) / alpha
