"""FedAvg of models that forget less of the classes which their client has not."""

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.registry import algorithm


@algorithm("fedntd", title="FedNTD")
class FedNTD(FedAvg):
    """FedAvg of models that keep what the received one says of other classes than the label's (Lee et al. 2022)"""

    defaults = {"local": "ntd"}
