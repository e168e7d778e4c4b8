"""Two models at once: the received one, and one that is used in a mixture with it."""

import torch

from fedmerge.local_methods.base import LocalMethod
from fedmerge.registry import local_method


@local_method("mixture", requires={"algorithm": ("apfl",)})
class Mixture(LocalMethod):
    """sgd, and beside it steps on a model of the client's own, at its mixture with the first (Deng et al. 2020)

    Both take a step on each batch: the second along the gradient, by its own weights, of the loss at the mixture of
    what the two were before it. Each has an optimiser and statistics of BatchNorm of its own. It takes twice as long.
    A share of the second in the mixture that is a tensor [1] is learned: the first step changes it, too.
    """

    def __call__(self, client, start, correction):
        if client.aside is None:  # it trains once more, the mixture itself
            super().__call__(client, start, correction)
            return
        # Its own model, [dim], and the share of that: a number, or a tensor [1].
        (own, alpha), model, epochs = client.aside, client.model, client.settings.epochs
        n, held, gradient = model.layout.n_trainable, model.vector.clone(), torch.zeros_like(model.gradient)
        learns = torch.is_tensor(alpha)  # and has not, yet

        def mix():
            torch.lerp(held[:n], own[:n], alpha, out=model.trainable)
            return None if learns else alpha

        def adjust(gradient):
            nonlocal learns
            if learns:
                learns, slope = False, torch.dot(own[:n] - held[:n], gradient)
                gradient *= alpha  # of the mixture, until here
                alpha.sub_(client.lr * slope).clamp_(0, 1)

        batches = client.batches(epochs, client.rng("batches"), n_steps=client.settings.max_steps)
        beside = client.steps(batches, own[:n], point=mix, adjust=adjust if learns else None)
        steps = self.run(client, epochs, correction)
        for _ in range(self.n_steps(client, epochs)):
            held.copy_(model.vector)
            swap(model.gradient, gradient)
            model.vector[n:] = own[n:]
            next(beside)
            own[n:] = model.vector[n:]
            model.vector.copy_(held)
            swap(model.gradient, gradient)
            next(steps)
        steps.close()  # which counts them; those of the other model are not told of
        told = client.told()
        beside.close()
        vars(client).update(told)
        client.loss = client.loss + 0 * own.sum()  # not finite if a number of it is not


def swap(a, b):
    """Exchange the numbers of two vectors."""
    held = a.clone()
    a.copy_(b)
    b.copy_(held)
