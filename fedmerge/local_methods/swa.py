"""Stochastic weight averaging."""

import torch

from fedmerge.local_methods.base import LocalMethod
from fedmerge.registry import local_method


@local_method("swa", averages=True)
class SWA(LocalMethod):
    """the average of the models at the ends of the last epochs (stochastic weight averaging, Izmailov et al. 2018)

    With four epochs or fewer, only the last one ends after --swa_start of the steps, and it is FedAvg: start earlier.
    """

    options = {"swa_start": (0.75, "decay", "share of the steps after which averaging starts")}

    def __call__(self, client, start, correction):
        epochs = client.settings.epochs
        total = self.n_steps(client, epochs)
        cycle = -(-total // epochs)
        mean, count = torch.zeros_like(start), 0
        for step, _ in enumerate(self.run(client, epochs, correction), 1):
            if (step % cycle == 0 or step == total) and step > self.swa_start * total:
                count += 1
                mean.lerp_(client.model.vector, 1 / count)
        client.settle(mean)
