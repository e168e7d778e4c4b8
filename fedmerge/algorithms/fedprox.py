"""FedAvg with a proximal term."""

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.registry import algorithm


@algorithm("fedprox", title="FedProx", paper="Li et al. 2020")
class FedProx(FedAvg):
    """FedAvg with a proximal pull to the received model in every local step (Li et al. 2020, Eq. 2)"""

    options = {"prox_momentum": (0.01, "nonnegative", "mu: the local loss has + mu/2 |w - received|^2")}

    def gradient_correction(self, w, start, client):
        return self.prox_momentum * (w - start)
