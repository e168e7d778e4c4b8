"""Model-contrastive training."""

import torch
import torch.nn.functional as F

from fedmerge.local_methods.base import LocalMethod
from fedmerge.registry import local_method


@local_method("moon", one_run=True, requires={"bn_every": (1,)})  # it looks at what the received model makes of images
class MOON(LocalMethod):
    """features are drawn to those of the received model, from those of the client's last one (Li, He, Song 2021)

    Adds mu * -log softmax of the cosine similarities / temperature (Eq. 3) to the loss. A client that is new has no
    last model and takes the received one for it, so that the term says nothing.

    Differs from the paper: features are what enters the last layer; their networks have a projection head before it.
    """

    client_state = ("last",)  # the model [dim] that a client trained last
    options = {
        "moon_mu": (1.0, "nonnegative", "strength of the contrast between models"),
        "moon_temperature": (0.5, "positive", "temperature of the similarities"),
    }

    def __call__(self, client, start, correction):
        model, last = client.model, self.last.get(client.id, start)

        def loss(logits, x, y):
            own = model.features.float()
            with torch.no_grad():
                received, before = (model.features_of(vector, x).float() for vector in (start, last))
            likeness = torch.stack([F.cosine_similarity(own, other) for other in (received, before)], 1)
            contrast = F.cross_entropy(likeness / self.moon_temperature, torch.zeros_like(y))
            return F.cross_entropy(logits, y) + self.moon_mu * contrast

        with model.keeping_features():
            for _ in self.run(client, client.settings.epochs, correction, loss=loss if self.moon_mu else None):
                pass
        self.last[client.id] = model.vector.clone()

    def kept_length(self, name, layout):
        return layout.dim if name == "last" else None
