"""FedAvg of models whose features are held apart."""

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.registry import algorithm


@algorithm("feddecorr", title="FedDecorr")
class FedDecorr(FedAvg):
    """FedAvg of models trained against features that say the same (Shi et al. 2023)"""

    defaults = {"local": "decorr"}
