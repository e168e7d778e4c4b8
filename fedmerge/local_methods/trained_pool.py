"""What the variants of Local Superior Soups have in common whose pool holds trained models only."""

from abc import ABC, abstractmethod

import torch

from fedmerge.local_methods.base import LocalMethod


class TrainedPool(LocalMethod, ABC):
    """A pool of models, the first trained from the received one, each later one from the average of those before it.

    A later model alone is trained: the gradient is that of the loss at a random point between it and those before it,
    uniform on their simplex, chained to the new model. All are pulled to the received model, by the gradient of
    --affinity times the squared distance. The result is the average of all. Momentum, or Adam's moments, start anew
    with every model.
    """

    options = {
        "n_verts": (4, "count", "models that each client trains and averages"),
        "affinity": (1e-3, "nonnegative", "strength of the pull to the received model, times the squared distance"),
    }

    def __call__(self, client, start, correction):
        model, n = client.model, client.model.layout.n_trainable
        models, buffers = start.new_empty(self.n_verts, n), start.new_empty(self.n_verts, len(start) - n)
        for i, steps in enumerate(self.budget(client)):
            if i:
                model.trainable.copy_(models[:i].mean(0))
                model.vector[n:] = self.pooled(buffers[:i])
            models[i] = model.trainable
            if steps:
                self._train(client, start[:n], models[: i + 1], steps, correction)
            buffers[i] = model.vector[n:]
        client.settle(torch.cat([models.mean(0), self.pooled(buffers)]))

    @abstractmethod
    def budget(self, client):
        """Return how many steps each model takes."""

    def passes(self, client):
        """Return how many passes over the client's data hold the steps of any model."""
        return client.settings.epochs

    def pooled(self, buffers):
        """Return the buffers [k] of the average of models, given theirs [i, k]."""
        return buffers.mean(0)

    def settings_of(self, client):
        """Return the LocalSettings of a model's training, None for the client's."""

    def add_regulariser(self, gradient, models, anchor):
        """Add to `gradient [n_trainable]` that of the regulariser by the last of `models [i, n_trainable]`.

        anchor [n_trainable]: the received model.
        """
        gradient.add_(models[-1] - anchor, alpha=2 * self.affinity)

    def _train(self, client, anchor, models, steps, correction):
        """Train the last of `models [i, n_trainable]`; the first is trained in the working model itself."""
        i, more = len(models), {"settings": self.settings_of(client)}

        def adjust(gradient):
            if i == 1:
                models[0] = client.model.trainable
            self.add_regulariser(gradient, models, anchor)
            if correction is not None and i > 1:
                gradient += correction(models[-1])

        if self.affinity or i > 1:
            more["adjust"] = adjust
        if i > 1:
            more |= {"w": models[-1], "point": self._points(client, models, steps)}
        first = correction if i == 1 else None
        for _ in self.run(client, self.passes(client), first, model=i - 1, n_steps=steps, **more):
            pass
        if i == 1:
            models[0] = client.model.trainable

    def _points(self, client, models, steps):
        """Return a function that puts the next random point between `models [i, n_trainable]` into the working model,
        and returns the last one's share in it. Shares are -log u, normalised: Dirichlet(1).
        """
        drawn = -torch.rand(steps, len(models), generator=client.rng("interpolation", len(models) - 1)).log()
        shares = iter((drawn / drawn.sum(1, keepdim=True)).to(models.device))

        def point():
            share = next(shares)
            torch.mv(models.t(), share, out=client.model.trainable)
            return share[-1]

        return point
