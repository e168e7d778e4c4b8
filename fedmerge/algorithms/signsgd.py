"""Majority votes over signs."""

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.registry import algorithm


@algorithm("signsgd", title="signSGD")
class SignSGD(FedAvg):
    """clients send only signs, and the server steps where the majority points (Bernstein et al. 2019, Algorithm 1)"""

    options = {"sign_step": (2e-3, "positive", "the server's step for every weight")}
    defaults = {"value_bits": 1, "downlink": "sparse", "down_sparsity": 1.0}
    means = ("update", "sign")

    def merge(self, theta, arrived):
        n, step = self.layout.n_trainable, arrived.mean["update"]
        step[:n] = self.sign_step * arrived.mean["sign"].sign()
        return theta + step
