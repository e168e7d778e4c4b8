"""Model soups."""

from dataclasses import replace

import torch

from fedmerge.local_methods.base import Pool, hold_out
from fedmerge.registry import local_method


@local_method("soups", averages=True)
class Soups(Pool):
    """the average of models trained from the same start with varied settings (model soups, Wortsman et al. 2022)

    Greedy: from the best on, each model stays in the average if that does not raise the loss on held-out samples. The
    models differ in order of the samples, learning rate and weight decay.

    Differs from the paper: they judge by the accuracy; of the few samples that a client can hold out, the loss tells
    more.
    """

    options = {
        "soup_spread": (3.0, "positive", "learning rate and weight decay are multiplied by up to this, or divided"),
        "soup_selection": ("greedy", ("greedy", "uniform"), "average the models that help, or all"),
        "probe_epochs": (0, "integer", "epochs in which only the last layer is trained, before the models part"),
        "holdout": (0.1, "share", "share of a client's samples on which it judges its models, and does not train"),
    }

    def __call__(self, client, start, correction):
        greedy = self.soup_selection == "greedy"
        train, held = hold_out(client, self.holdout) if greedy else (client.indices, None)
        if self.probe_epochs:
            start = self._probe(client)
        models = start.new_empty(self.n_verts, len(start))
        for i in range(self.n_verts):
            client.model.load(start)
            for _ in self.run(client, self.soup_epochs, correction, i, indices=train, settings=self._vary(client, i)):
                pass
            models[i] = client.model.vector
        client.settle(self._pick(client, models, held) if greedy else models.mean(0))

    def _vary(self, client, i):
        """Return the LocalSettings of the i-th model; the first has the client's own."""
        if i == 0:
            return client.settings
        draws = torch.rand(2, generator=client.rng("soup", i)).tolist()
        lr, decay = (self.soup_spread ** (2 * u - 1) for u in draws)
        return replace(client.settings, lr=lr * client.settings.lr, weight_decay=decay * client.settings.weight_decay)

    def _pick(self, client, models, held):
        """Return the greedy average [dim] of `models [n_verts, dim]`."""

        def loss(vector):
            client.model.load(vector)
            return client.mean_loss(held).item()

        losses = [loss(model) for model in models]
        order = sorted(range(len(models)), key=losses.__getitem__)
        mean, count, best = models[order[0]].clone(), 1, losses[order[0]]
        for i in order[1:]:
            wider = mean + (models[i] - mean) / (count + 1)
            reached = loss(wider)
            if reached <= best:
                mean, count, best = wider, count + 1, reached
        return mean

    def _probe(self, client):
        """Train the head alone; return the vector [dim] reached."""
        begin, end = client.model.layout.head
        rng = client.rng("probe")
        batches = client.batches(self.probe_epochs, rng, n_steps=client.settings.max_steps)
        for _ in client.steps(batches, w=client.model.trainable[begin:end]):
            pass
        return client.model.vector.clone()
