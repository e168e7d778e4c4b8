"""Splits that are in the data."""

import numpy as np

from fedmerge.errors import InputError
from fedmerge.registry import partition


@partition("users", of="domains", title="natural users")
def users(domains, n_clients, value, rng):
    """a client is one domain of the dataset: who wrote, owned or took the images (LEAF, Caldas et al. 2018)

    In a folder of images, `NAME/<user>/<class>/`, these are its first folders, in the order of their names; in an .npz,
    its `train_domains`, if the test images have no others.
    """
    if n_clients != len(domains):
        raise InputError(f"--partition users: the data are of {len(domains)} users: --n_clients {len(domains)}")
    return np.concatenate(domains), np.repeat(np.arange(n_clients), [len(own) for own in domains])
