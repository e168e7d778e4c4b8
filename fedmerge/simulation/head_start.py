"""A head in closed form, before the first round: made of what clients tell of their features, once.

No client trains for it, and however labels are shared out, it is the head that all of their samples together make.
"""

from itertools import accumulate

import torch
from torch import nn

from fedmerge import datasets
from fedmerge.errors import InputError
from fedmerge.networks.flat_model import head_of


@torch.no_grad()
def fit_head(kind, trainer, theta, own=None, ridge=0.0):
    """Put a head of closed form into the initial model `theta [dim]`; return how many numbers a client sends for it,
    and gets.

    Each client sends the sum of its samples' features, class by class, and how many these are; features are what the
    head is given by the initial network, in evaluation. With "ncm", the weights of a class are the mean of its features
    (FedNCM, Legate et al. 2023); with "ridge", those of least squares to the classes as 0 and 1, for which clients send
    the Gram matrix of their features, too, one half of it (Fed3R, Fani et al. 2024). To its diagonal `ridge` samples of
    the mean size are added. Either way they are made of length 1, so that softmax has something to tell, and biases 0.

    trainer: a local_training.Trainer; own: places in a vector that stay with clients, int64 [k]. Raises InputError for
    a network whose head is not one linear layer, or stays with clients.
    """
    model = trainer.model
    name = head_of(model.module)
    head = model.module.get_submodule(name)
    if type(head) is not nn.Linear:
        raise InputError(f"--head_init {kind}: the head of this network, {name}, is no linear layer")
    ends = dict(zip(model.layout.names, accumulate(model.layout.sizes), strict=True))
    end = ends[f"{name}.weight"]
    begin, last = end - head.weight.numel(), ends.get(f"{name}.bias", end)
    if own is not None and ((own >= begin) & (own < last)).any():
        raise InputError(f"--head_init {kind}: under this --algorithm, the head stays with clients")
    model.load(theta)
    total = sum(told_of(trainer, head, part, kind) for part in trainer.parts if len(part))
    n_classes, width = head.weight.shape
    sums, counts = total[: n_classes * width].view(n_classes, width), total[n_classes * width :][:n_classes]
    weights = sums / counts.clamp(min=1)[:, None]
    if kind == "ridge":
        weights = solved(sums, total[n_classes * (width + 1) :], counts.sum(), ridge)
    theta[begin:end] = nn.functional.normalize(weights, eps=1e-30).flatten().to(theta)
    theta[end:last] = 0
    return len(total), n_classes * width


def told_of(trainer, head, part, kind):
    """Return what a client sends: sums of features, class by class, counts, and half of the Gram matrix with "ridge".

    As one vector on the CPU, in float64, of float32 numbers. part: its places in the training images.
    """
    train, seen = trainer.splits.train, []
    n_classes, width = head.weight.shape
    sums = head.weight.new_zeros(n_classes, width)
    gram = head.weight.new_zeros(width, width)
    hook = head.register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    part = part.to(train.labels.device)
    try:
        with trainer.model.evaluating():
            for chosen in part.split(datasets.batch_size(train, trainer.splits.image_size)):
                logits = trainer.model.module(trainer.splits.normalise(train.images[chosen]))
                features = seen.pop()
                if features.dim() != 2 or not torch.equal(head(features), logits):
                    raise InputError(f"--head_init {kind}: the network's logits are not what its last layer makes")
                seen.clear()
                sums.index_add_(0, train.labels[chosen], features)
                if kind == "ridge":
                    gram.addmm_(features.t(), features)
    finally:
        hook.remove()
    counts = torch.bincount(train.labels[part], minlength=n_classes)
    told = [sums.flatten(), counts.to(sums)]
    if kind == "ridge":
        told.append(gram[tuple(torch.triu_indices(width, width, device=gram.device))])
    return torch.cat(told).cpu().double()


def solved(sums, half, n, ridge):
    """Return W [n_classes, width] of least squares from sums [n_classes, width] and half of n samples' Gram matrix."""
    width = sums.shape[1]
    gram = sums.new_zeros(width, width)
    rows, columns = torch.triu_indices(width, width)
    gram[rows, columns] = gram[columns, rows] = half
    gram.diagonal().add_(ridge * gram.diagonal().mean() / n + torch.finfo(torch.float32).tiny)
    return torch.linalg.solve(gram, sums.t()).t()
