"""FedAvg of dense averages."""

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.registry import algorithm


@algorithm("swad", title="SWAD")
class LocalSWAD(FedAvg):
    """FedAvg of the clients' dense averages where their loss is low (Cha et al. 2021)"""

    defaults = {"local": "swad"}
