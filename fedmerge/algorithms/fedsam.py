"""FedAvg of models in flat valleys."""

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.registry import algorithm


@algorithm("fedsam", title="FedSAM")
class FedSAM(FedAvg):
    """FedAvg of models trained by sharpness-aware minimisation (Qu et al. 2022, Algorithm 1)"""

    defaults = {"local": "sam"}
