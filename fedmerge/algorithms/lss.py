"""FedAvg of Local Superior Soups."""

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.registry import algorithm


@algorithm("lss", title="LSS", paper="Chen et al. 2024")
class LSS(FedAvg):
    """FedAvg of what Local Superior Soups make, in as many steps as FedAvg takes (Chen et al. 2024)

    --preset paper is their Algorithm 1, --preset published what their code does.
    """

    defaults = {"local": "lss_budget", "local_optimizer": "adam"}
    presets = {"paper": {"local": "lss"}, "published": {"local": "lss_published"}}
