"""FedAvg of model-contrastive training."""

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.registry import algorithm


@algorithm("moon", title="MOON")
class MOON(FedAvg):
    """FedAvg of models trained with a contrast between models (Li, He and Song 2021)"""

    defaults = {"local": "moon"}
