"""How the training set is split among the clients."""

from fedmerge.partitions.described import described, histograms, partition_hash
from fedmerge.partitions.drawn import partition, partition_by_domain, partition_iid, split_into_clients
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
    "partition_iid",
    "save_partition",
    "split_into_clients",
    "stamp_partition",
]
