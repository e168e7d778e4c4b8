"""FedAvg of a sparse part of the network, chosen once, before training."""

import torch

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.compressors.largest import top_k_mask
from fedmerge.errors import InputError
from fedmerge.registry import algorithm


@algorithm("ssfl", title="SSFL", paper="Ohib et al. 2024")
class SSFL(FedAvg):
    """all train one sparse part of the network, chosen before the first round; all else is 0 (Ohib et al. 2024)

    Each client measures |w g| at the first model, on one batch of its samples (SNIP's saliency, Lee et al. 2019); the
    mean, by their numbers of samples, chooses the largest. Only these weights are trained, and only they cross the
    wire: since all know which they are, no positions do. That all clients send saliencies and get the first model and
    the mask is counted in the first round. Vectors, such as biases, stay whole.
    """

    options = {"ssfl_keep": (0.05, "share", "share of the weights of matrices and kernels that are trained")}

    def begin(self, theta, trainer):
        n, total = self.layout.n_trainable, torch.zeros_like(trainer.model.gradient)
        for client_id, part in enumerate(trainer.parts):
            if len(part):
                total.add_(trainer.client(client_id, 1).saliency(theta), alpha=len(part))
        kinds = zip(self.layout.sizes, self.layout.shapes, strict=True)
        shaped = torch.cat([torch.full((size,), len(shape) > 1) for size, shape in kinds]).to(total.device)
        for name, shape, values in zip(self.layout.names, self.layout.shapes, self.layout.rows_of(total), strict=True):
            if len(shape) > 1 and not values.any():
                raise InputError(f"--algorithm ssfl: no weight of {name} matters before training, as of adapters")
        mask = ~shaped
        mask[shaped] = top_k_mask(total[shaped], self.ssfl_keep, (int(shaped.sum()),))
        theta[:n] *= mask
        trainer.trained = mask.to(theta.dtype)
        self.own = (~mask).nonzero().view(-1)
        return int(shaped.sum())

    def merge(self, theta, step, aggregate):
        """Rules that work on whole matrices move all of their weights."""
        if self.own is not None:
            step.index_fill_(0, self.own, 0)
        return super().merge(theta, step, aggregate)
