"""FedAvg with control variates."""

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.client_update import ClientUpdate
from fedmerge.registry import algorithm


@algorithm(
    "scaffold",
    title="SCAFFOLD",
    paper="Karimireddy et al. 2020",
    requires={"local": "one_run", "local_optimizer": ("sgd",)},
)
class Scaffold(FedAvg):
    """control variates take out of clients' gradients what makes them drift apart (Karimireddy et al. 2020, option II)

    Each client keeps its mean gradient, the server the mean of these. Both cross the wire beside the model and the
    change, and are counted. With momentum, its steps K are the gradients that its change is made of.
    """

    uploads = broadcasts = statistics = server_state = ("control",)  # c, and the changes of c_i: [n_trainable]
    client_state = ("client_control",)  # c_i

    def gradient_correction(self, w, start, client):
        return client.received["control"] - self.client_control.get(client.id, 0)

    def client_update(self, delta, start, client):
        gradient = delta[: self.layout.n_trainable] / (-client.lr * client.gradients)
        return ClientUpdate(delta, control=gradient - client.received["control"])

    def acknowledge(self, client, decoded):
        self.client_control[client.id] = decoded.control + self.client_control.get(client.id, 0)

    def merge(self, theta, step, aggregate):
        change = aggregate.share_of_clients * aggregate.mean["control"]
        self.control = change if self.control is None else self.control + change
        return super().merge(theta, step, aggregate)

    def kept_length(self, name, layout):
        return layout.n_trainable if name in ("control", "client_control") else None
