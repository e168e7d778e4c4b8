"""Settings of the shortest run in which every component has something to do, and what it trains on."""

from fedmerge import datasets, partitions
from fedmerge.config.resolve import resolve
from fedmerge.simulation.experiment import load_splits

TINY = {
    **{"dataset": "DIGITS", "n_clients": 4, "participation": 0.5, "n_epochs": 2, "local_steps": 2, "batch_size": 8},
    **{"model_name": "small", "norm": "batch", "lr": 0.01, "device": "cpu", "quiet": True},
    **{"soup_epochs": 1, "n_verts": 2},
}


def few_digits():
    """Return datasets.Splits of the digits, 40 of them for training, and each client's places among these."""
    splits = load_splits(resolve(TINY))
    splits = datasets.Splits(splits.train[:40], splits.val[:8], splits.test[:8], 10, splits.mean, splits.std)
    return splits, partitions.partition(splits.train.labels, TINY["n_clients"], "iid", 0)
