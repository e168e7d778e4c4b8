"""A head in closed form, before the first round: made of what clients tell of their features, once.

No client trains for it, and however labels are shared out, it is the head that all of their samples together make.
"""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import nn

from fedmerge import datasets
from fedmerge.client_update import ClientUpdate
from fedmerge.errors import InputError
from fedmerge.networks.flat_model import head_of
from fedmerge.randomness import generator
from fedmerge.wire import SERVER, pack, transmit


@torch.no_grad()
def fit_head(how, trainer, theta, own=None):
    """Put a head of closed form into the initial model `theta [dim]`; return the bytes that each client with samples
    sends for it, in order, and those that every client gets.

    Each client sends the sum of its samples' features, for each class that it holds, and how many these are; features
    are what the head is given by the initial network, in evaluation. Weights are

        ncm    the mean of each class's features (FedNCM, Legate et al. 2023)
        cof    these means times the inverse of the covariance within classes, which is estimated by how the clients'
               means of a class differ (FedCOF, Goswami et al. 2025)
        ridge  those of least squares to the classes as 0 and 1, for which clients send the Gram matrix of their
               features, too, one half of it (Fed3R, Fani et al. 2024)

    To the diagonal of what is inverted, `ridge` times its mean is added. All are then made of length 1 a class, so that
    softmax has something to tell, and biases 0.

    how: HeadSettings; trainer: a local_training.Trainer; own: places in a vector that stay with clients, int64 [k].
    Raises InputError for a network whose head is not one linear layer, or stays with clients.
    """
    model = trainer.model
    name = head_of(model.module)
    head = model.module.get_submodule(name)
    if type(head) is not nn.Linear:
        raise InputError(f"--head_init {how.kind}: the head of this network, {name}, is no linear layer")
    ends = dict(zip(model.layout.names, accumulate(model.layout.sizes), strict=True))
    end = ends[f"{name}.weight"]
    begin, last = end - head.weight.numel(), ends.get(f"{name}.bias", end)
    if own is not None and ((own >= begin) & (own < last)).any():
        raise InputError(f"--head_init {how.kind}: under this --algorithm, the head stays with clients")
    model.load(theta)
    told = Told(*head.weight.shape)
    clients = (client for client, part in enumerate(trainer.parts) if len(part))
    bytes_up = [told.add(how, told_of(trainer, head, trainer.parts[client], how.kind), client) for client in clients]
    weights = nn.functional.normalize(WEIGHTS[how.kind](told, how.ridge), eps=1e-30).flatten()
    bytes_down, arrived = how.across(weights.float(), torch.empty(0), SERVER)
    theta[begin:end] = arrived.weights.dequantise().to(theta)
    theta[end:last] = 0
    return bytes_up, bytes_down


@dataclass(frozen=True)
class HeadSettings:
    """What a head is made of, and how what makes it is sent."""

    kind: str  # of WEIGHTS
    ridge: float = 0.0
    bits: int = 32  # of a sum of features, and of a weight
    real: bool = False  # bytes are made, and read
    seed: int = 0  # of what rounds below 16 bits

    def across(self, values, exact, client):
        """Return the bytes of a message of `values` [n], rounded, and of numbers that are not, and what arrives."""
        vector = ClientUpdate(torch.cat([values, exact]))
        rng = generator(self.seed, "rounding", "head", client)
        return transmit(pack(vector, len(values), self.bits, rng, client=client), self.real)


def told_of(trainer, head, part, kind):
    """Return what a client tells, float32 on the CPU: the sums [n_classes, width] of its features, class by class; and
    how many samples each has, with half of the Gram matrix behind these with "ridge".

    part: its places in the training images.
    """
    train, seen = trainer.splits.train, []
    n_classes, width = head.weight.shape
    sums = head.weight.new_zeros(n_classes, width)
    gram = head.weight.new_zeros(width, width)
    hook = head.register_forward_hook(lambda layer, given, made: seen.append((given[0], made)))
    part = part.to(train.labels.device)
    try:
        with trainer.model.evaluating():
            for chosen in part.split(datasets.batch_size(train, trainer.splits.image_size)):
                logits = trainer.model.module(trainer.splits.normalise(train.images[chosen]))
                features, made = seen.pop()
                if features.dim() != 2 or made is not logits:
                    raise InputError(f"--head_init {kind}: the network's logits are not what its last layer makes")
                sums.index_add_(0, train.labels[chosen], features)
                if kind == "ridge":
                    gram.addmm_(features.t(), features)
    finally:
        hook.remove()
    exact = [torch.bincount(train.labels[part], minlength=n_classes).to(sums)]
    if kind == "ridge":
        exact.append(gram[tuple(torch.triu_indices(width, width, device=gram.device))])
    return sums.cpu(), torch.cat(exact).cpu()


class Told:
    """What clients told: `sums` of features [n_classes, width] and `counts` [n_classes] of each.

    total, count, half: the sums over clients of these, and of halves of their Gram matrices, if they told of them, in
    float64.
    """

    def __init__(self, n_classes, width):
        self.sums, self.counts = [], []
        self.total = torch.zeros(n_classes, width, dtype=torch.float64)
        self.count, self.half = torch.zeros(n_classes, dtype=torch.float64), 0

    def add(self, how, told, client):
        """Have a client send what it told, of the classes that it holds; return the bytes.

        They are told one by one, since there may be no room for all Gram matrices. how: HeadSettings.
        """
        sums, exact = told
        n_bytes, arrived = how.across(sums[exact[: len(sums)] > 0].flatten(), exact, client)
        counts, half = arrived.tail.data.split([len(sums), len(exact) - len(sums)])
        received = torch.zeros_like(sums)
        received[counts > 0] = arrived.weights.dequantise().view(-1, sums.shape[1])
        self.sums.append(received)
        self.counts.append(counts.double())
        self.total += received.double()
        self.count += self.counts[-1]
        self.half = self.half + half.double()
        return n_bytes

    @property
    def means(self):
        """Return the means of the classes' features [n_classes, width], 0 for a class of which there is no sample."""
        return self.total / self.count.clamp(min=1)[:, None]


def class_means(told, ridge):
    return told.means


def by_spread(told, ridge):
    """Return the means over the covariance within classes: client k's mean of n_k of a class's samples has 1 / n_k of
    its covariance, so that n_k (mean - mean of the class)^2, summed over K clients, has K - 1 times it on average.
    """
    means, width = told.means, told.total.shape[1]
    held = sum((counts > 0).double() for counts in told.counts)  # by how many clients a class is held
    if not (held > 1).any():
        raise InputError("--head_init cof: no class is held by two clients, and no covariance shows: --head_init ncm")
    share = told.count / (held - 1).clamp(min=1)
    within = means.new_zeros(width, width)
    for sums, counts in zip(told.sums, told.counts, strict=True):
        apart = (sums.double() / counts.clamp(min=1)[:, None] - means) * (counts * share).sqrt()[:, None]
        within.addmm_(apart.t(), apart)
    return over(within, means, ridge)


def least_squares(told, ridge):
    width = told.total.shape[1]
    gram = told.total.new_zeros(width, width)
    rows, columns = torch.triu_indices(width, width)
    gram[rows, columns] = gram[columns, rows] = told.half
    return over(gram, told.total, ridge)


def over(matrix, rows, ridge):
    """Return `rows [n, width]` times the inverse of a symmetric matrix whose diagonal gets more, by `ridge`."""
    matrix.diagonal().add_(ridge * matrix.diagonal().mean() + torch.finfo(torch.float32).tiny)
    solution, failed = torch.linalg.solve_ex(matrix, rows.t())
    if failed or not torch.isfinite(solution).all():
        raise InputError(f"--head_ridge {ridge:g}: the matrix of the features has no inverse: raise it")
    return solution.t()


WEIGHTS = {"ncm": class_means, "cof": by_spread, "ridge": least_squares}
