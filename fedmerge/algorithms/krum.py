"""FedAvg by a merge that liars cannot spoil."""

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.registry import algorithm


@algorithm("krum", title="multi-Krum", paper="Blanchard et al. 2017")
class MultiKrum(FedAvg):
    """FedAvg by the mean of the updates nearest to the others (Blanchard et al. 2017)"""

    defaults = {"merge": "krum"}
