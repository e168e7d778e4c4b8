"""Training without clients, for comparison."""

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.registry import algorithm


@algorithm(
    "centralised",
    title="centralised",
    requires={"n_clients": (1,), "participation": (1.0,), "dirichlet": ("iid",)},
)
class Centralised(FedAvg):
    """all training data in one place: nothing is sent, and it bounds what federated training can reach"""

    defaults = {"n_clients": 1, "participation": 1.0}
    communicates = False
