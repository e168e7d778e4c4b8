"""What a client makes of the model that it received: one run of its optimiser."""

import torch

from fedmerge.component import Stateful
from fedmerge.randomness import generator
from fedmerge.registry import local_method


@local_method("sgd", one_run=True)
class LocalMethod(Stateful):
    """one run of the optimiser over the client's data"""

    def __call__(self, client, start, correction):
        """Leave in client.model what `client` makes of it; it holds start [dim].

        correction(w) -> [n_trainable]: what is added to the gradient at the weights w, or None.
        """
        for _ in self.run(client, client.settings.epochs, correction):
            pass

    def run(self, client, epochs, correction=None, model=0, indices=None, n_steps=None, **more):
        """Yield after each step of `epochs` passes, at most --local_steps of them, in the order of the `model`-th.

        n_steps: end after so many, which are not more.
        """
        rng = client.rng("batches", model) if model else client.rng("batches")
        n_steps = n_steps or client.settings.max_steps
        if client.can_capture() and correction is None and not any(value is not None for value in more.values()):
            return client.captured_steps(client.choices(epochs, rng, indices, n_steps))
        steps = client.steps(client.batches(epochs, rng, indices, n_steps), correction=correction, **more)
        if client.settings.bn != "eval_after_first_epoch":
            return steps
        return _evaluating_after(steps, client.steps_of(1, indices), client.model)

    def n_steps(self, client, epochs, indices=None):
        """Return how many steps `run` takes."""
        return min(client.steps_of(epochs, indices), client.settings.max_steps or 2**63)


def _evaluating_after(steps, n, model):
    """Yield after each of `steps`; from the n-th on, the FlatModel works as in evaluation: BatchNorm's statistics stay
    as they are.
    """
    model.train()
    for i, _ in enumerate(steps, 1):
        if i == n:
            model.module.eval()
        yield


class Pool(LocalMethod):
    """What methods that train several models have in common."""

    options = {
        "n_verts": (4, "count", "models that each client trains and averages"),
        "soup_epochs": (8, "count", "epochs of each of them"),
    }


def hold_out(client, share):
    """Return (indices to train on, indices held out) of the client's samples, int64; the same ones in every round.

    Both have at least one; a client that has only one trains and judges on it.
    """
    n = client.n_samples
    k = min(max(1, round(share * n)), n - 1)
    if k == 0:
        return client.indices, client.indices
    order = torch.randperm(n, generator=generator(client.settings.seed, "holdout", client.id))
    order = client.indices.cpu()[order]
    return order[k:], order[:k]
