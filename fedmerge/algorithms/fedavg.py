"""Federated averaging, which all other algorithms derive from."""

import torch

from fedmerge.client_update import Update
from fedmerge.component import Stateful
from fedmerge.registry import algorithm


@algorithm("fedavg", title="FedAvg")
class FedAvg(Stateful):
    """the average of the clients' updates, weighted by their samples (McMahan et al. 2017, Algorithm 1)"""

    defaults = {}  # not inherited
    presets = {}
    sends = True  # whether anything crosses a wire
    personalises = False  # whether `personal` gives clients other models than `deployed`
    means = ("update",)  # of merging.MEANS, what `merge` needs; () = all updates, which then have to be kept
    pull = None  # pull(w, start) -> [n_trainable]: what the algorithm adds to every local gradient

    def __init__(self, layout, **options):
        """`layout` is the model's models.Layout; `options` are the values of `self.options`."""
        super().__init__(**options)
        self.layout = layout

    def broadcast(self, theta):
        """Return the vector `[dim]` from which the clients start, given the server's model `theta [dim]`."""
        return theta

    def local_update(self, start, client):
        """Train `client` (a local_training.Client) from `start [dim]`; return its Update."""
        delta = torch.sub(client.train(start, self.pull), start, out=client.row)
        return self.upload(delta, start, client)

    def upload(self, delta, start, client):
        """Return the Update that carries `delta [dim]`, a client's trained minus its received vector."""
        return Update(delta)

    def delivered(self, client, update):
        """Hear which Update of `client` the server decoded: another than was sent, if values are rounded."""

    def merge(self, theta, arrived):
        """Return the server's next model `[dim]`, of what merging.Arrived holds of the updates, and use that up."""
        return arrived.mean["update"].add_(theta)

    def deployed(self, theta):
        """Return the model `[dim]` that is evaluated, given the server's `theta [dim]`."""
        return theta

    def personal(self, theta, number):
        """Return the model `[dim]` that client `number` uses, given the server's `theta [dim]`."""
        return self.deployed(theta)
