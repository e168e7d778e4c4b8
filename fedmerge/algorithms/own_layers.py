"""What algorithms have in common under which each client has some layers of its own, which nobody else learns."""

from abc import ABC, abstractmethod
from itertools import pairwise

import torch

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.client_update import ClientUpdate
from fedmerge.errors import InputError


class OwnLayers(FedAvg, ABC):
    """FedAvg of all but the layers that each client keeps; derived classes say which, in `own_ranges`."""

    personalises = True
    client_state = ("own_layers",)  # client -> what it has at `own`, [k]

    def __init__(self, layout, run=None, **options):
        super().__init__(layout, run, **options)
        places = [torch.arange(begin, end) for begin, end in self.own_ranges(layout)]
        self.own = torch.cat(places).sort().values if places else torch.arange(0)

    @abstractmethod
    def own_ranges(self, layout):
        """Return [(begin, end)] of what stays with the clients in a vector [dim]. Raises InputError if that is all."""

    def ends_of(self, layout, k, flag):
        """Return [(begin, end)] in a vector [dim] of all but the last k layers, and of these.

        Raises InputError, which names the flag, if one of them is nothing.
        """
        if not k < len(layout.layers):
            raise InputError(f"{flag}: of {len(layout.layers)} layers that are trained, some must be shared, some not")
        last = [place for layer in layout.layers[-k:] for place in layer]
        ends = sorted([(0, 0), *last, (layout.dim, layout.dim)])
        return [(end, begin) for (_, end), (begin, _) in pairwise(ends) if end < begin], last

    def _with(self, theta, own):
        return theta.index_copy(0, self.own.to(theta.device), own)

    def client_start(self, received, client):
        """The received model with the client's own layers, if it has any yet."""
        own = self.own_layers.get(client.id)
        return received if own is None else self._with(received, own)

    def client_update(self, delta, start, client):
        own = self.own.to(delta.device)
        if client.attack is None:  # what an attacker has of its own is spoilt, and is nobody's
            self.own_layers[client.id] = client.model.vector[own]
        return ClientUpdate(delta.index_fill_(0, own, 0))

    def global_model(self, theta):
        """The mean of the clients' layers in it."""
        if not self.own_layers:
            return theta
        total = theta.new_zeros(len(self.own))
        for client_id in sorted(self.own_layers):  # there may be no room for twice all
            total += self.own_layers[client_id]
        return self._with(theta, total / len(self.own_layers))

    def client_model(self, theta, client_id):
        own = self.own_layers.get(client_id)
        return self.global_model(theta) if own is None else self._with(theta, own)

    def kept_length(self, name, layout):
        return len(self.own) if name == "own_layers" else None
