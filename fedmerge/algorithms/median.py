"""FedAvg by a merge that liars cannot spoil."""

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.registry import algorithm


@algorithm("median", title="median", paper="Yin et al. 2018")
class Median(FedAvg):
    """FedAvg by the median of the clients' updates: half may lie (Yin et al. 2018)"""

    defaults = {"merge": "median"}
