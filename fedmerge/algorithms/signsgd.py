"""Majority votes over signs."""

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.registry import algorithm


@algorithm("signsgd", title="signSGD", paper="Bernstein et al. 2019")
class SignSGD(FedAvg):
    """clients send only signs, and the server steps where the majority points (Bernstein et al. 2019, Algorithm 1)

    Differs from the paper: the signs are those of a client's whole change of a round, not of each gradient.
    """

    defaults = {"merge": "sign", "value_bits": 1, "downlink": "sparse", "down_sparsity": 1.0}
