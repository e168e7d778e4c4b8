"""FedAvg of diverse weight averages."""

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.registry import algorithm


@algorithm("diwa", title="DiWA")
class LocalDiWA(FedAvg):
    """FedAvg of averages of all of a client's mildly varied models, their head trained first (Rame et al. 2022)"""

    defaults = {"local": "soups", "soup_selection": "uniform", "soup_spread": 1.5, "probe_epochs": 1}
