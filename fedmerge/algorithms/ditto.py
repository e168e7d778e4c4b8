"""FedAvg, and beside it a model of each client's own that is drawn to the common one."""

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.client_update import ClientUpdate
from fedmerge.registry import algorithm


@algorithm("ditto", title="Ditto", paper="Li, Hu et al. 2021")
class Ditto(FedAvg):
    """FedAvg; each client that takes part also trains a model of its own (Li, Hu et al. 2021, Algorithm 1)

    That descends its loss and lambda / 2 times the squared distance to the model received, in as many steps of the
    same local method, begins as the first one received, and never leaves the client. What the server makes is FedAvg's
    model, bit for bit.
    """

    options = {"ditto_lambda": (1.0, "nonnegative", "lambda: pull of the common model on the clients' own")}
    personalises = True
    client_state = ("own_model",)  # client -> its model, [dim]

    def own_correction(self, common):
        n = self.layout.n_trainable
        return lambda w, start, client: self.ditto_lambda * (w - common[:n])

    def client_update(self, delta, start, client):
        own = self.own_model.get(client.id, start)
        self.own_model[client.id] = client.train_aside(own, self.own_correction(start))
        return ClientUpdate(delta)

    def client_model(self, theta, client_id):
        return self.own_model.get(client_id, theta)

    def kept_length(self, name, layout):
        return layout.dim if name == "own_model" else None
