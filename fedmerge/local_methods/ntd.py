"""Not-true distillation."""

import torch
import torch.nn.functional as F

from fedmerge.local_methods.base import LocalMethod
from fedmerge.registry import local_method


@local_method("ntd", one_run=True, requires={"bn_every": (1,)})  # it looks at what the received model makes of images
class NotTrueDistillation(LocalMethod):
    """what the received model says of other classes than the label's is kept (Lee et al. 2022, section 4)

    Adds beta * KL(received || own) to the loss, of softmaxes over all classes but the label's.
    """

    options = {
        "ntd_beta": (1.0, "nonnegative", "beta: strength of the distillation"),
        "ntd_tau": (1.0, "positive", "tau: temperature of both softmaxes"),
    }

    def __call__(self, client, start, correction):
        def others(logits, y):
            """Logarithms of the softmax over all classes but the labels' [B, n_classes - 1]."""
            rest = torch.arange(logits.shape[1] - 1, device=y.device)
            rest = rest + (rest >= y[:, None])  # a mask instead would wait for the device
            return (logits.gather(1, rest) / self.ntd_tau).log_softmax(1)

        def loss(logits, x, y):
            with torch.no_grad():
                received = client.model.logits_of(start, x).float()
            away = F.kl_div(others(logits, y), others(received, y), reduction="batchmean", log_target=True)
            return F.cross_entropy(logits, y) + self.ntd_beta * away

        for _ in self.run(client, client.settings.epochs, correction, loss=loss if self.ntd_beta else None):
            pass
