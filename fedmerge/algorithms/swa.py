"""FedAvg of stochastic weight averages."""

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.registry import algorithm


@algorithm("swa", title="SWA")
class LocalSWA(FedAvg):
    """FedAvg of the clients' stochastic weight averages (Izmailov et al. 2018)"""

    defaults = {"local": "swa"}
