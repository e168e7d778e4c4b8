"""FedAvg with accelerated client gradients."""

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.registry import algorithm


@algorithm("fedacg", title="FedACG")
class FedACG(FedAvg):
    """server momentum with a lookahead broadcast (Kim et al. 2024, Algorithm 1)"""

    options = {
        "acg_momentum": (0.1, "decay", "lambda: share of the server's momentum kept each round"),
        "acg_beta": (0.0, "nonnegative", "beta: the local loss has + beta/2 |w - lookahead|^2"),
    }
    own = ("server_momentum",)

    def __init__(self, layout, **options):
        super().__init__(layout, **options)
        self.server_momentum = None  # [n_trainable], m in the paper; zero before the first merge
        if self.acg_beta == 0:
            self.pull = None  # spare every local step two passes over the weights

    def broadcast(self, theta):
        start = theta.clone()
        if self.server_momentum is not None:
            start[: self.layout.n_trainable] += self.acg_momentum * self.server_momentum
        return start

    def kept_length(self, name, layout):
        return layout.n_trainable if name == "server_momentum" else None

    def pull(self, w, start):
        return self.acg_beta * (w - start)

    def merge(self, theta, arrived):
        n, step = self.layout.n_trainable, arrived.mean["update"]  # [dim], relative to the lookahead point
        if self.server_momentum is not None:
            step[:n] += self.acg_momentum * self.server_momentum
        self.server_momentum = step[:n].clone()
        return theta + step
