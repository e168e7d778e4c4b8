"""The algorithms: what the server broadcasts, what a client's gradient adds, what it sends, and how updates merge.

A model is a vector `[dim]`: the trainable weights `[n_trainable]` first, then the float buffers (BatchNorm statistics).
A cohort is a matrix of updates `[clients, dim]`. Momentum, proximal pulls and masks act on the trainable part; buffers
are averaged, weighted by the clients' shares, and always sent whole.

To add an algorithm, derive a class from FedAvg (or another), put `@register("name")` over it and override the hooks in
which it differs. Options that only it has go into `options`, a literal dict which the command line reads:
name -> (default, kind, help) with a kind of utils.KINDS or a tuple of choices, and a fourth entry "other_option=value"
if it acts only then.
"""

from typing import NamedTuple

import torch
from torch import Tensor

ALGORITHMS = {}


def register(name):
    """Class decorator: make the algorithm known as `--algorithm name`."""

    def add(cls):
        ALGORITHMS[name] = cls
        return cls

    return add


class Update(NamedTuple):
    """What one client sends."""

    delta: Tensor  # [dim], trained minus received; 0 where the mask is unset
    mask: Tensor | None = None  # bool [n_trainable], the weights that are sent; None = all


@register("fedavg")
class FedAvg:
    """the average of the clients' updates, weighted by their samples (McMahan et al. 2017, Algorithm 1)"""

    options = {}
    pull = None  # pull(w, start) -> [n_trainable]: what the algorithm adds to every local gradient

    def __init__(self, layout, **options):
        """`layout` is the model's models.Layout; `options` are the values of `self.options`."""
        unknown = set(options) - set(self.options)
        if unknown:
            raise TypeError(f"{type(self).__name__} has no option {', '.join(sorted(unknown))}")
        self.layout = layout
        for name, (default, *_) in self.options.items():
            setattr(self, name, options.get(name, default))

    def broadcast(self, theta):
        """Return the vector `[dim]` from which the clients start, given the server's model `theta [dim]`."""
        return theta

    def local_update(self, start, client):
        """Train `client` (a local_training.Client) from `start [dim]`; return its Update."""
        delta = torch.sub(client.train(start, self.pull), start, out=client.row)
        return self.upload(delta, start, client)

    def upload(self, delta, start, client):
        """Return the Update that carries `delta [dim]`, a client's trained minus its received vector."""
        return Update(delta)

    def merge(self, theta, deltas, masks, p):
        """Return the server's next model `[dim]`.

        deltas [clients, dim]: what arrived; masks: bool [clients, n_trainable], or None where all weights were sent;
        p [clients]: the clients' weights, which sum to 1.
        """
        return theta + p @ deltas

    def state(self):
        """Return {name: tensor or number}: what the server keeps between rounds besides its model."""
        return {}

    def load(self, state):
        """Take back what `state()` returned."""
        for name, value in state.items():
            setattr(self, name, value)


@register("fedprox")
class FedProx(FedAvg):
    """FedAvg with a proximal pull to the received model in every local step (Li et al. 2020, Eq. 2)"""

    options = {"prox_momentum": (0.01, "nonnegative", "mu: the local loss has + mu/2 |w - received|^2")}

    def pull(self, w, start):
        return self.prox_momentum * (w - start)


@register("fedacg")
class FedACG(FedAvg):
    """server momentum with a lookahead broadcast (Kim et al. 2024, Algorithm 1)"""

    options = {
        "acg_momentum": (0.1, "decay", "lambda: share of the server's momentum kept each round"),
        "acg_beta": (0.0, "nonnegative", "beta: the local loss has + beta/2 |w - lookahead|^2"),
    }

    def __init__(self, layout, **options):
        super().__init__(layout, **options)
        self.server_momentum = None  # [n_trainable], m in the paper; zero before the first merge
        if self.acg_beta == 0:
            self.pull = None  # spare every local step two passes over the weights

    def broadcast(self, theta):
        start = theta.clone()
        if self.server_momentum is not None:
            start[: self.layout.n_trainable] += self.acg_momentum * self.server_momentum
        return start

    def pull(self, w, start):
        return self.acg_beta * (w - start)

    def merge(self, theta, deltas, masks, p):
        n, step = self.layout.n_trainable, p @ deltas  # [dim], relative to the lookahead point
        if self.server_momentum is not None:
            step[:n] += self.acg_momentum * self.server_momentum
        self.server_momentum = step[:n].clone()
        return theta + step

    def state(self):
        return {} if self.server_momentum is None else {"server_momentum": self.server_momentum}


@register("las")
class LaSFL(FedAvg):
    """Localize-and-Stitch for federated learning: each client sends a sparse part of its update (He et al. 2024)"""

    options = {
        "sparsity": (0.2, "share", "share of the weights KEPT by each client"),
        "mask_scope": ("layer", ("layer", "global"), "keep that share of every layer, or of the whole vector"),
        "localiser": ("magnitude", ("magnitude", "learned"), "keep the largest changes, or learn which to keep"),
        "graft_epochs": (10, "count", "epochs of mask learning", "localiser=learned"),
        "graft_lr": (1e7, "positive", "learning rate of the mask's logits", "localiser=learned"),
        "sigmoid_bias": (5.0, "positive", "size of the logits at the start", "localiser=learned"),
        "l1_strength": (1.0, "nonnegative", "pull of the soft mask towards sending less", "localiser=learned"),
    }

    def __init__(self, layout, **options):
        super().__init__(layout, **options)
        learning = None
        if self.localiser == "learned":
            learning = {
                "epochs": self.graft_epochs,
                "lr": self.graft_lr,
                "bias": self.sigmoid_bias,
                "l1_strength": self.l1_strength,
            }
        blocks = layout.sizes if self.mask_scope == "layer" else (layout.n_trainable,)
        self.localise = Localiser(self.sparsity, blocks, learning)
        self.stitch = Stitcher(layout)

    def upload(self, delta, start, client):
        mask = self.localise(delta, start, client)
        n = self.layout.n_trainable
        return Update(torch.cat([delta[:n] * mask, delta[n:]]), mask)

    def merge(self, theta, deltas, masks, p):
        return self.stitch(theta, deltas, masks, p)


class Localiser:
    """Chooses the weights that a client sends: `localiser(delta, start, client) -> mask`, bool [n_trainable].

    keep: share of each block kept by magnitude; blocks: sizes that sum to n_trainable; learning: None, or the keyword
    arguments with which the client refines that choice on its data (local_training.Client.learn_mask).
    """

    def __init__(self, keep, blocks, learning=None):
        self.keep, self.blocks, self.learning = keep, tuple(blocks), learning

    def __call__(self, delta, start, client):
        mask = top_k_mask(delta[: sum(self.blocks)], self.keep, self.blocks)
        return client.learn_mask(start, delta, mask, **self.learning) if self.learning else mask


def top_k_mask(delta, keep, sizes):
    """Return the bool mask `[n]` of the largest |delta|, delta `[n]`: round(keep * size) of every block of `sizes`.

    At least one of each block is kept. The "dataless" localisation of He et al. 2024.
    """
    mask = torch.zeros_like(delta, dtype=torch.bool)
    for part, chosen in zip(delta.abs().split(sizes), mask.split(sizes), strict=True):
        chosen[part.topk(max(1, round(keep * len(part))), sorted=False).indices] = True
    return mask


class Stitcher:
    """Merges sparse updates: `stitcher(theta, deltas, masks, p) -> theta`.

    A weight becomes the p-weighted mean of those clients that kept it, and stays the server's where none did
    (He et al. 2024, with sample weights). Buffers `[dim - n_trainable]` are averaged over all clients.
    """

    def __init__(self, layout):
        self.n = layout.n_trainable

    def __call__(self, theta, deltas, masks, p):
        step = p @ deltas  # deltas are zero where nothing was kept
        share = torch.zeros_like(step[: self.n])
        for weight, mask in zip(p, masks, strict=True):  # by rows: no float copy of all the masks at once
            share += weight * mask
        step[: self.n] = torch.where(share > 0, step[: self.n] / share, 0)
        return theta + step
