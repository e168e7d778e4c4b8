"""FedAvg with longer steps of the server where clients disagree."""

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.registry import algorithm


@algorithm("fedexp", title="FedExP")
class FedExP(FedAvg):
    """FedAvg by a mean that is longer where updates agree less, judged by its last two models' mean (Jhunjhunwala 2023)

    As such steps swing from side to side, what is evaluated is the mean of the server's last two models, as in the
    paper. --merge fedexp alone makes its SCAFFOLD-ExP and the like.
    """

    defaults = {"merge": "fedexp"}
    server_state = ("before",)  # the server's model [dim] before the last merge

    def merge(self, theta, step, aggregate):
        self.before = theta.clone()
        return super().merge(theta, step, aggregate)

    def global_model(self, theta):
        return theta if self.before is None else (self.before + theta) / 2

    def kept_length(self, name, layout):
        return layout.dim if name == "before" else None
