"""Dense averages where the loss is low."""

import torch

from fedmerge.local_methods.base import LocalMethod, hold_out
from fedmerge.registry import local_method


@local_method("swad", averages=True)
class SWAD(LocalMethod):
    """the average over every step of the stretch in which the loss on held-out samples is low (Cha et al. 2021)

    Algorithm 1 there: the stretch starts at the first evaluation that is the lowest of the swad_wait from it on, and
    ends before the first from which swad_patience on are all above swad_tolerance times the mean of those.

    Differs from the paper: a client judges by a part of its own samples, the same in every round, which it then does
    not train on.
    """

    options = {
        "holdout": (0.1, "share", "share of a client's samples on which it judges its models, and does not train"),
        "swad_evaluations": (20, "count", "evaluations a round"),
        "swad_wait": (3, "count", "N_s: evaluations that show that the loss rises"),
        "swad_patience": (6, "count", "N_e: evaluations that show that it stays high"),
        "swad_tolerance": (1.3, "positive", "r: how high is too high"),
    }

    def __call__(self, client, start, correction):
        train, held = hold_out(client, self.holdout)
        total = self.n_steps(client, client.settings.epochs, train)
        every = -(-total // min(self.swad_evaluations, total))
        means, losses, count = start.new_empty(-(-total // every), client.model.layout.dim), [], 0
        for step, _ in enumerate(self.run(client, client.settings.epochs, correction, indices=train), 1):
            mean, count = means[len(losses)], count + 1
            mean.copy_(client.model.vector) if count == 1 else mean.lerp_(client.model.vector, 1 / count)
            if count == every or step == total:
                losses.append(client.mean_loss(held))
                count = 0
        begin, end = low_stretch(torch.stack(losses).tolist(), self.swad_wait, self.swad_patience, self.swad_tolerance)
        sizes = torch.full([len(losses)], float(every))
        sizes[-1] = total - every * (len(losses) - 1)
        weights = (sizes[begin:end] / sizes[begin:end].sum()).to(means.device)
        client.settle(weights @ means[begin:end])


def low_stretch(losses, wait, patience, tolerance):
    """Return (begin, end) of the low stretch of `losses`, a list of numbers, as SWAD has it; end is exclusive."""
    n = len(losses)
    begin = next((i for i in range(n - wait + 1) if losses[i] == min(losses[i : i + wait])), None)
    if begin is None:
        return n - 1, n
    limit = tolerance * sum(losses[begin : begin + wait]) / wait
    end = next((i for i in range(begin + 1, n - patience + 1) if min(losses[i : i + patience]) > limit), n)
    return begin, end
