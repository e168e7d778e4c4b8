"""FedAvg with longer steps of the server where clients disagree."""

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.registry import algorithm


# What is judged is made of the server's own models, which clients of a sparse downlink do not have.
@algorithm("fedexp", title="FedExP", requires={"downlink": ("delta", "dense", "individual")})
class FedExP(FedAvg):
    """FedAvg by a mean that is longer where updates agree less, judged by its last two models' mean (Jhunjhunwala 2023)

    As such steps swing from side to side, what is evaluated is the mean of the server's last two models, as in the
    paper. --merge fedexp alone makes its SCAFFOLD-ExP and the like.
    """

    defaults = {"merge": "fedexp"}
    server_state = ("before",)  # the server's weights [n_trainable] before the last merge

    def merge(self, theta, step, aggregate):
        self.before = theta[: self.layout.n_trainable].clone()
        return super().merge(theta, step, aggregate)

    def global_model(self, theta):
        if self.before is None:
            return theta
        mean = theta.clone()
        mean[: self.layout.n_trainable].add_(self.before).div_(2)
        return mean

    def kept_length(self, name, layout):
        return layout.n_trainable if name == "before" else None
