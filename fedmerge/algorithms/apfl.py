"""FedAvg, and beside it a model of each client's own, used in a mixture with the common one."""

import torch

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.client_update import ClientUpdate
from fedmerge.registry import algorithm


@algorithm("apfl", title="APFL", paper="Deng et al. 2020", requires={"local": ("mixture",)})
class APFL(FedAvg):
    """FedAvg; what clients use is a mixture with a model of their own, trained as such (Deng et al. 2020, Algorithm 1)

    A client's own model v begins as the first one received, and never leaves the client. With each step on the common
    model w it takes one along the gradient, by v, of the loss at alpha v + (1 - alpha) w, on the same samples. What the
    server makes is FedAvg's model, bit for bit, but for networks that draw as they train.

    Differs from the paper: alpha is the same for all clients and rounds; its section 4.2 also adapts it.
    """

    options = {"apfl_alpha": (0.5, "share", "alpha: share of a client's own model in the mixture")}
    defaults = {"local": "mixture"}
    personalises = True
    client_state = ("own_model",)  # client -> v, [dim]

    def client_start(self, received, client):
        own = self.own_model.get(client.id, received)
        client.aside = own.clone(), self.apfl_alpha
        return received

    def client_update(self, delta, start, client):
        if client.attack is None:  # what an attacker has of its own is spoilt, and is nobody's
            self.own_model[client.id], _ = client.aside
        return ClientUpdate(delta)

    def client_model(self, theta, client_id):
        own = self.own_model.get(client_id)
        return theta if own is None else torch.lerp(theta, own, self.apfl_alpha)

    def kept_length(self, name, layout):
        return layout.dim if name == "own_model" else None
