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

    With --apfl_adaptive each client has an alpha of its own, which it keeps. In the first step of each of its rounds
    that descends, at the client's learning rate, the loss of the mixture: alpha - lr <v - w, g>, g the gradient at the
    mixture (section 4.2), held in [0, 1].

    Differs from the paper: without --apfl_adaptive, alpha is the same for all clients and rounds. At alpha 0 the own
    model has no gradient, and stays as it is until alpha has moved.
    """

    options = {
        "apfl_alpha": (
            0.5,
            "share",
            "alpha: share of a client's own model in the mixture; at first, if it is learned",
        ),
        "apfl_adaptive": (False, "flag", "each client learns its alpha, by a step in each of its rounds"),
    }
    defaults = {"local": "mixture"}
    personalises = True
    client_state = ("own_model", "own_alpha")  # client -> v, [dim]; its alpha, [1], where it is learned

    def client_start(self, received, client):
        own, alpha = self.own_model.get(client.id, received), self.apfl_alpha
        if self.apfl_adaptive:
            alpha = self.own_alpha.get(client.id, received.new_tensor([alpha])).clone()
        client.aside = own.clone(), alpha
        return received

    def client_update(self, delta, start, client):
        if client.attack is None:  # what an attacker has of its own is spoilt, and is nobody's
            self.own_model[client.id], alpha = client.aside
            if self.apfl_adaptive:
                self.own_alpha[client.id] = alpha
        return ClientUpdate(delta)

    def client_model(self, theta, client_id):
        own = self.own_model.get(client_id)
        return theta if own is None else torch.lerp(theta, own, self.own_alpha.get(client_id, self.apfl_alpha))

    def kept_length(self, name, layout):
        return {"own_model": layout.dim, "own_alpha": int(self.apfl_adaptive)}.get(name)
