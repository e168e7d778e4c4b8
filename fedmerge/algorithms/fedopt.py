"""FedAvg whose server takes the merged step for a gradient, and an optimiser for it."""

import torch

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.registry import algorithm


@algorithm("fedavgm", title="FedAvgM", paper="Hsu 2019", defaults={"server_optimizer": "momentum", "server_lr": 1.0})
@algorithm("fedadam", title="FedAdam", paper="Reddi et al. 2021")
@algorithm("fedyogi", title="FedYogi", paper="Reddi et al. 2021", defaults={"server_optimizer": "yogi"})
@algorithm("fedadagrad", title="FedAdagrad", paper="Reddi et al. 2021", defaults={"server_optimizer": "adagrad"})
class FedOpt(FedAvg):
    """FedAvg with an optimiser at the server (Reddi et al. 2021, Algorithm 2; FedAvgM: Hsu et al. 2019)

    FedAdagrad, too, has a momentum here unless --server_beta1 0.
    """

    options = {
        "server_optimizer": ("adam", ("momentum", "adam", "yogi", "adagrad"), "what the server makes of a merged step"),
        "server_lr": (0.03, "positive", "eta: the server's learning rate"),
        "server_beta1": (0.9, "decay", "beta_1: share of the mean step kept each round"),
        "server_beta2": (0.99, "decay", "beta_2: share of the squared step kept", "server_optimizer=adam|yogi"),
        "server_tau": (1e-3, "positive", "tau: how adaptive it is", "server_optimizer=adam|yogi|adagrad"),
    }
    server_state = ("mean", "square")  # m and v, [n_trainable]

    def merge(self, theta, step, aggregate):
        n, plain = self.layout.n_trainable, self.server_optimizer == "momentum"
        delta = step[:n].clone()
        mean = torch.zeros_like(delta) if self.mean is None else self.mean
        self.mean = self.server_beta1 * mean + (delta if plain else (1 - self.server_beta1) * delta)
        step[:n] = self.server_lr * self.mean
        if not plain:
            self.square = self._next_square(delta.square())
            step[:n] /= self.square.sqrt() + self.server_tau
        return super().merge(theta, step, aggregate)

    def _next_square(self, new):
        """Return v of the next round, given the square of the step."""
        square = torch.full_like(new, self.server_tau**2) if self.square is None else self.square
        if self.server_optimizer == "adagrad":
            return square + new
        towards = new - square if self.server_optimizer == "adam" else new * (new - square).sign()
        return square + (1 - self.server_beta2) * towards

    def kept_length(self, name, layout):
        return layout.n_trainable if name in FedOpt.server_state else None
