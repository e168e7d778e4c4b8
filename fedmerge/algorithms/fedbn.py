"""FedAvg with normalisation layers of the clients' own."""

import torch

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.registry import algorithm


@algorithm("fedbn", title="FedBN")
class FedBN(FedAvg):
    """FedAvg of all but the normalisation layers, of which each client has its own (Li, Jiang et al. 2021)

    The server never learns these: where one model is asked for, it has the mean of the clients' layers. An update holds
    zeros for them, which are counted as sent.
    """

    defaults = {"norm": "batch"}  # it would be FedAvg without
    personalises = True

    def __init__(self, layout, **options):
        super().__init__(layout, **options)
        self.norms = {}  # client -> its layers, [k]
        ranges = [torch.arange(begin, end) for begin, end in layout.norms]
        self.places = torch.cat(ranges) if ranges else torch.arange(0)  # their places in the vector, [k]

    def _with(self, theta, norms):
        return theta.index_copy(0, self.places.to(theta.device), norms)

    def local_update(self, start, client):
        start = self.personal_start(start, client.number)
        trained = client.train(start, self.pull)
        own = self.places.to(start.device)
        self.norms[client.number] = trained[own]
        delta = torch.sub(trained, start, out=client.row)
        return self.upload(delta.index_fill_(0, own, 0), start, client)

    def personal_start(self, theta, number):
        """Return `theta [dim]` with the client's own layers, if it has any yet."""
        return self._with(theta, self.norms[number]) if number in self.norms else theta

    def held(self):
        return {"norms": self.norms}

    def kept_length(self, name, layout):
        return len(self.places) if name == "norms" else None

    def deployed(self, theta):
        if not self.norms:
            return theta
        return self._with(theta, torch.stack([self.norms[number] for number in sorted(self.norms)]).mean(0))

    def personal(self, theta, number):
        return self.personal_start(theta, number) if number in self.norms else self.deployed(theta)
