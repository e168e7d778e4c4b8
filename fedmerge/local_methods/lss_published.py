"""Local Superior Soups as its authors' code has it."""

from dataclasses import replace

import torch

from fedmerge.local_methods.trained_pool import TrainedPool
from fedmerge.registry import local_method

BATCHES_A_STEP = 15  # of the later models: their gradients are zeroed where they should be used


@local_method("lss_published", averages=True)
class LSSPublished(TrainedPool):
    """Local Superior Soups as its code was published, which is not Algorithm 1 (Chen et al. 2024)

    The first model is trained for --soup_epochs; each later one passes over the data once, and takes a step in 15
    batches: a handful of steps. --diversity times the squared volume of the models' simplex is taken off the loss. No
    weight decay. BatchNorm's statistics are measured on and on at whatever points were drawn, and not averaged.
    """

    options = {
        "soup_epochs": (8, "count", "epochs of each of them"),
        "diversity": (
            1e-3,
            "nonnegative",
            "strength of the push apart, times the squared volume of the models' simplex",
        ),
    }

    def budget(self, client):
        first = self.n_steps(client, self.soup_epochs)
        return [first, *[max(1, self.n_steps(client, 1) // BATCHES_A_STEP)] * (self.n_verts - 1)]

    def passes(self, client):
        return self.soup_epochs

    def pooled(self, buffers):
        return buffers[-1]

    def settings_of(self, client):
        return replace(client.settings, weight_decay=0.0)

    def add_regulariser(self, gradient, models, anchor):
        super().add_regulariser(gradient, models, anchor)
        if self.diversity and len(models) > 1:
            gradient.sub_(volume_gradient(models), alpha=self.diversity)


def volume_gradient(models):
    """Return the gradient [n] of the squared volume of the simplex of `models [i, n]`, i > 1, by the last of them.

    The volume of i - 1 edges from the first is the root of the determinant of their products over (i - 1)!; the
    determinant is that of all edges but the last, times the square of the last one's part that is at right angles to
    these (Cayley-Menger's determinant says the same by distances).
    """
    edges = models[1:] - models[0]
    others, last = edges[:-1], edges[-1]
    products = others @ others.t()
    across = (
        last - others.t() @ (torch.linalg.pinv(products, hermitian=True) @ (others @ last)) if len(others) else last
    )
    factorial = torch.arange(1, len(models), device=models.device, dtype=models.dtype).prod()
    return 2 * torch.linalg.det(products) / factorial**2 * across
