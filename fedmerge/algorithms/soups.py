"""FedAvg of model soups."""

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.registry import algorithm


@algorithm("soups", title="Soups")
class LocalSoups(FedAvg):
    """FedAvg of the clients' model soups (Wortsman et al. 2022)"""

    defaults = {"local": "soups"}
