"""FedAvg by a merge that liars cannot spoil."""

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.registry import algorithm


@algorithm("trimmed_mean", title="trimmed mean", paper="Yin et al. 2018")
class TrimmedMean(FedAvg):
    """FedAvg by the mean without the largest and smallest values (Yin et al. 2018)"""

    defaults = {"merge": "trimmed_mean"}
