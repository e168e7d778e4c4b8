"""How the training set is split among the clients.

To add a way to draw a split, add a file with a function that is registered under its name:

    @partition("NAME", value="positive", title="NAME({value})")
    def name(classes, n_clients, value, rng):
        \"\"\"what becomes of the samples (whose rule it is)\"\"\"
        return positions, owners

It makes one draw. classes: the positions, in the training set, of each class, a list of ascending int64 arrays;
value: what stands behind the colon in --partition NAME:VALUE, of a kind of config.kinds.KINDS (without `value`, there
is none), or, of several with commas between them, as in value="count,positive", a tuple; rng: the NumPy generator of
the draw. It returns positions int64 [M], each at most once, and the client of each, int64 [M]. Draws are repeated until
each client has --min_client_samples. What else the decorator may say:

    of        "domains": `classes` are then the positions of each domain of the data, such as a user, instead
    advice    a function (classes, n_clients, value, seed, min_samples, domains) that returns in words, up to "or ",
              what to change where that cannot succeed
"""

from fedmerge.partitions.described import described, histograms, partition_hash, skew
from fedmerge.partitions.drawn import partition, partition_by_domain, split_into_clients
from fedmerge.partitions.saved import labels_hash, load_partition, partition_file_hash, save_partition, stamp_partition

__all__ = [
    "described",
    "histograms",
    "labels_hash",
    "load_partition",
    "partition",
    "partition_by_domain",
    "partition_file_hash",
    "partition_hash",
    "save_partition",
    "skew",
    "split_into_clients",
    "stamp_partition",
]
