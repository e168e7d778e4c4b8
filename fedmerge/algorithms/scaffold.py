"""FedAvg with control variates."""

from fedmerge.algorithms.fedavg import ClientUpdate, FedAvg
from fedmerge.registry import algorithm


@algorithm(
    "scaffold",
    title="SCAFFOLD",
    paper="Karimireddy et al. 2020",
    requires={"local": "one_run", "local_optimizer": ("sgd",)},
)
class Scaffold(FedAvg):
    """control variates take out of gradients what makes clients drift apart (Karimireddy et al. 2020, option II)

    Clients keep their mean gradients c_i, the server their mean c: two vectors each way. K counts momentum's gradients.
    """

    uploads = broadcasts = statistics = server_state = ("control",)  # c, and the changes of c_i: [n_trainable]
    client_state = ("client_control",)  # c_i

    def gradient_correction(self, w, start, client):
        return client.received["control"] - self.client_control.get(client.id, 0)

    def client_update(self, delta, start, client):
        gradient = delta[: self.layout.n_trainable] / (-client.lr * client.gradients)
        return ClientUpdate(delta, control=gradient - client.received["control"])

    def acknowledge(self, client, decoded):
        self.client_control[client.id] = client.if_finite(decoded.control) + self.client_control.get(client.id, 0)

    def forget(self, client_id): ...  # c_i holds what is in c, and nothing that was not finite

    def merge(self, theta, step, aggregate):
        change = aggregate.share_of_clients * aggregate.mean["control"]
        self.control = change if self.control is None else self.control + change
        return super().merge(theta, step, aggregate)

    def kept_length(self, name, layout):
        return layout.n_trainable if name in ("control", "client_control") else None
