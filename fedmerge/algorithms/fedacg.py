"""FedAvg with accelerated client gradients."""

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.registry import algorithm


@algorithm("fedacg", title="FedACG", paper="Kim et al. 2024")
class FedACG(FedAvg):
    """server momentum with a lookahead broadcast (Kim et al. 2024, Algorithm 1)

    Differs from the paper: the defaults, lambda 0.1 and no proximal term, are those of experiments.txt; theirs are 0.85
    and 1e-3. Their code has no 1/2 in that term, so that its 1e-3 is --acg_beta 2e-3.
    """

    options = {
        "acg_momentum": (0.1, "decay", "lambda: share of the server's momentum kept each round"),
        "acg_beta": (0.0, "nonnegative", "beta: the local loss has + beta/2 |w - lookahead|^2"),
    }
    server_state = ("server_momentum",)  # [n_trainable], m in the paper; None before the first merge

    def __init__(self, layout, run=None, **options):
        super().__init__(layout, run, **options)
        if self.acg_beta == 0:
            self.gradient_correction = None  # spare every local step two passes over the weights

    def broadcast(self, theta):
        """The lookahead point."""
        start = theta.clone()
        if self.server_momentum is not None:
            start[: self.layout.n_trainable] += self.acg_momentum * self.server_momentum
        return start

    def gradient_correction(self, w, start, client):
        return self.acg_beta * (w - start)

    def merge(self, theta, step, aggregate):
        """The step is relative to the lookahead point: with the momentum it is the next momentum."""
        n = self.layout.n_trainable
        if self.server_momentum is not None:
            step[:n] += self.acg_momentum * self.server_momentum
        self.server_momentum = step[:n].clone()
        return theta + step

    def kept_length(self, name, layout):
        return layout.n_trainable if name in FedACG.server_state else None
