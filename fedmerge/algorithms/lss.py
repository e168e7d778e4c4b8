"""FedAvg of Local Superior Soups."""

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.registry import algorithm


@algorithm("lss", title="LSS")
class LSS(FedAvg):
    """FedAvg of what Local Superior Soups make (Chen et al. 2024)"""

    defaults = {"local": "lss"}
