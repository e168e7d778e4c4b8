"""Sharpness-aware minimisation."""

import torch
import torch.nn.functional as F

from fedmerge.local_methods.base import LocalMethod
from fedmerge.registry import local_method


@local_method("sam", one_run=True)
class SAM(LocalMethod):
    """gradients are those a little uphill, so that minima are flat (Foret et al. 2021, Eqs. 2 and 3; Qu et al. 2022)

    A step is that of the gradient at w + rho g / |g|, g the gradient at w of the same batch: two passes for each. What
    a server adds to gradients, BatchNorm's statistics, loss and accuracy are those at w.
    """

    options = {"sam_rho": (0.05, "nonnegative", "rho: how far uphill gradients are taken")}

    def __call__(self, client, start, correction):
        model, before = client.model, torch.empty_like(client.model.vector)
        parameters = [p for p in model.module.parameters() if p.requires_grad]

        def loss_uphill(logits, x, y):
            """Leave the working model there."""
            loss = F.cross_entropy(logits, y)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            with torch.no_grad():
                before.copy_(model.vector)
                climb = torch.cat([g.reshape(-1) for g in gradients])
                model.trainable.add_(climb.mul_(self.sam_rho / (climb.norm() + 1e-12)))
            return F.cross_entropy(client.forward(x), y)

        def corrected(w):
            model.load(before)
            return correction(w)

        back = {"adjust": lambda gradient: model.load(before)} if correction is None else {"correction": corrected}
        more = {"loss": loss_uphill, **back} if self.sam_rho else {"correction": correction}
        for _ in self.run(client, client.settings.epochs, **more):
            pass
