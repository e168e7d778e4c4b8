"""FedAvg with normalisation layers of the clients' own."""

import sys

import torch

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.client_update import ClientUpdate
from fedmerge.registry import algorithm


@algorithm("fedbn", title="FedBN", paper="Li, Jiang et al. 2021")
class FedBN(FedAvg):
    """FedAvg of all but the normalisation layers, of which each client has its own (Li, Jiang et al. 2021)

    The server never learns these: where one model is asked for, it has the mean of the clients' layers. An update holds
    zeros for them, which are counted as sent.
    """

    defaults = {"norm": "batch"}  # it would be FedAvg without
    personalises = True
    client_state = ("norms",)  # client -> its layers, [k]

    def __init__(self, layout, run=None, **options):
        super().__init__(layout, run, **options)
        if run is not None and not layout.norms:
            print("warning: --algorithm fedbn is FedAvg where no normalisation layer is trained", file=sys.stderr)
        ranges = [torch.arange(begin, end) for begin, end in layout.norms]
        self.places = torch.cat(ranges) if ranges else torch.arange(0)  # their places in the vector, [k]

    def _with(self, theta, norms):
        return theta.index_copy(0, self.places.to(theta.device), norms)

    def client_start(self, received, client):
        """The received model with the client's own layers, if it has any yet."""
        return self._own(received, client.id)

    def client_update(self, delta, start, client):
        own = self.places.to(delta.device)
        self.norms[client.id] = client.model.vector[own]
        return ClientUpdate(delta.index_fill_(0, own, 0))

    def _own(self, theta, client_id):
        return self._with(theta, self.norms[client_id]) if client_id in self.norms else theta

    def global_model(self, theta):
        """The mean of the clients' layers in it."""
        if not self.norms:
            return theta
        return self._with(theta, torch.stack([self.norms[client_id] for client_id in sorted(self.norms)]).mean(0))

    def client_model(self, theta, client_id):
        return self._own(theta, client_id) if client_id in self.norms else self.global_model(theta)

    def kept_length(self, name, layout):
        return len(self.places) if name == "norms" else None
