"""FedAvg, where each client begins at its own mixture of its last model and the one received."""

import torch

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.client_update import ClientUpdate
from fedmerge.errors import InputError
from fedmerge.registry import algorithm

JUDGED, STILL, MOST = 10, 0.1, 20  # losses of which the deviation is below that end the first learning, or 20 epochs


@algorithm("fedala", title="FedALA", paper="Zhang et al. 2023")
class FedALA(FedAvg):
    """each client begins at a mixture of its last model and the received one, learned anew (Zhang et al. 2023, Alg. 1)

    In the last layers it is, weight by weight, own + (received - own) W; all others are those received. W, in [0, 1],
    begins as 1 and descends the loss on a share of the client's samples, for one epoch; the first time, when a client
    takes part for the second time, until the loss of ten epochs is about the same, for 20 at most. The client sends how
    far its trained model is from the one received; last model and W never leave it.

    Differs from the paper: it has no end of the first learning but that of the loss. The model that a client is judged
    by has the W that it learned last.
    """

    options = {
        "ala_layers": (1, "count", "layers that are mixed, the last ones"),
        "ala_share": (0.8, "share", "share of a client's samples by which it learns the mixture"),
        "ala_rate": (1.0, "positive", "learning rate of the mixture"),
    }
    personalises = True
    client_state = ("last_model", "mix")  # client -> [dim]; W, [k]

    def __init__(self, layout, run=None, **options):
        super().__init__(layout, run, **options)
        if self.ala_layers > len(layout.layers):
            raise InputError(f"--ala_layers {self.ala_layers}: the network has {len(layout.layers)} that are trained")
        last = [torch.arange(*place) for layer in layout.layers[-self.ala_layers :] for place in layer]
        places = torch.cat(last).sort().values
        self.places = places[places < layout.n_trainable]

    def _mixed(self, received, own, mix):
        places = self.places.to(received.device)
        return received.index_copy(0, places, torch.lerp(own[places], received[places], mix))

    def client_start(self, received, client):
        own = self.last_model.get(client.id)
        if own is None:
            return received
        places, first = self.places.to(received.device), client.id not in self.mix
        mix = torch.ones_like(received[places]) if first else self.mix[client.id].clone()
        order = torch.randperm(client.n_samples, generator=client.rng("mixture samples"))
        n = max(min(2, client.n_samples), round(self.ala_share * client.n_samples))  # of one, BatchNorm has no variance
        some = client.indices.cpu()[order[:n]]
        losses = []
        for epoch in range(MOST if first else 1):
            batches = client.batches(1, client.rng("mixture", epoch), some)
            losses.append(client.learn_mix(own, received, mix, places, batches, self.ala_rate))
            if len(losses) > JUDGED and torch.stack(losses[-JUDGED:]).std(correction=0) < STILL:
                break
        self.mix[client.id] = mix
        return self._mixed(received, own, mix)

    def client_update(self, delta, start, client):
        if client.attack is None:  # what an attacker has of its own is spoilt, and is nobody's
            self.last_model[client.id] = client.model.vector
        client.start = client.downloaded  # what the change is relative to
        return ClientUpdate(torch.sub(client.model.vector, client.downloaded, out=delta))

    def client_model(self, theta, client_id):
        own, mix = self.last_model.get(client_id), self.mix.get(client_id)
        return theta if own is None or mix is None else self._mixed(theta, own, mix)

    def kept_length(self, name, layout):
        return {"last_model": layout.dim, "mix": len(self.places)}.get(name)
