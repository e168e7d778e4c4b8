"""Decorrelation of features."""

import torch.nn.functional as F

from fedmerge.local_methods.base import LocalMethod
from fedmerge.registry import local_method


@local_method("decorr", one_run=True)
class Decorrelation(LocalMethod):
    """features that rise and fall together are held apart, against collapse into few dimensions (Shi et al. 2023)

    Adds beta / d^2 * |K|_F^2 to the loss (section 4), K the correlations [d, d] of what enters the last layer, over a
    batch; of a batch of one image there are none.

    Differs from their code: there the term is larger, all but as many times as a batch has images: its 0.1 with 64 of
    them is --decorr_beta 6.3.
    """

    options = {"decorr_beta": (0.1, "nonnegative", "beta: strength of the decorrelation")}

    def __call__(self, client, start, correction):
        def loss(logits, x, y):
            together = mean_square_correlation(client.model.features.float()) if len(y) > 1 else 0
            return F.cross_entropy(logits, y) + self.decorr_beta * together

        with client.model.keeping_features():
            for _ in self.run(client, client.settings.epochs, correction, loss=loss if self.decorr_beta else None):
                pass


def mean_square_correlation(features):
    """Return the mean over all d x d pairs of features [B, d] of their squared correlation over the batch, a scalar."""
    features = features.flatten(1)
    z = (features - features.mean(0)) / ((features.var(0) + 1e-8) * (len(features) - 1)).sqrt()
    if len(z) < z.shape[1]:  # the same of a smaller product: |Z^T Z|_F = |Z Z^T|_F
        z = z.T
    return (z.T @ z).square().sum() / features.shape[1] ** 2
