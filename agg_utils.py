"""The algorithms: what the server broadcasts, what a client's gradient adds, what it sends, and how updates merge.

A model is a vector `[dim]`: the trainable weights `[n_trainable]` first, then the float buffers (BatchNorm statistics).
Momentum, proximal pulls and masks act on the trainable part; buffers are averaged, weighted by the clients' shares, and
always sent whole. What a merge gets of the updates is merging.Arrived.

To add an algorithm, derive a class from FedAvg (or another), put `@register("name")` over it and override the hooks in
which it differs. Options that only it has go into `options`, a literal dict which the command line reads:
name -> (default, kind, help) with a kind of options.KINDS or a tuple of choices, and a fourth entry "other=value" if it
acts only then ("other=value|value": with either; "other": if that is not at its default). `defaults` are its own
defaults for flags that all have, or that it inherits, and `presets` name such combinations for `--preset`.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from options import Stateful
from sparse_updates import ErrorFeedback, Localiser, Stitcher, masked

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
class FedAvg(Stateful):
    """the average of the clients' updates, weighted by their samples (McMahan et al. 2017, Algorithm 1)"""

    defaults = {}  # not inherited
    presets = {}
    sends = True  # whether anything crosses a wire
    personalises = False  # whether `personal` gives clients other models than `deployed`
    means = ("update",)  # of merging.MEANS, what `merge` needs; () = all updates, which then have to be kept
    pull = None  # pull(w, start) -> [n_trainable]: what the algorithm adds to every local gradient

    def __init__(self, layout, **options):
        """`layout` is the model's models.Layout; `options` are the values of `self.options`."""
        super().__init__(**options)
        self.layout = layout

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

    def delivered(self, client, update):
        """Hear which Update of `client` the server decoded: another than was sent, if values are rounded."""

    def merge(self, theta, arrived):
        """Return the server's next model `[dim]`, of what merging.Arrived holds of the updates, and use that up."""
        return arrived.mean["update"].add_(theta)

    def deployed(self, theta):
        """Return the model `[dim]` that is evaluated, given the server's `theta [dim]`."""
        return theta

    def personal(self, theta, number):
        """Return the model `[dim]` that client `number` uses, given the server's `theta [dim]`."""
        return self.deployed(theta)


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
    own = ("server_momentum",)

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

    def kept_length(self, name, layout):
        return layout.n_trainable if name == "server_momentum" else None

    def pull(self, w, start):
        return self.acg_beta * (w - start)

    def merge(self, theta, arrived):
        n, step = self.layout.n_trainable, arrived.mean["update"]  # [dim], relative to the lookahead point
        if self.server_momentum is not None:
            step[:n] += self.acg_momentum * self.server_momentum
        self.server_momentum = step[:n].clone()
        return theta + step


@register("las")
class LaSFL(FedAvg):
    """Localize-and-Stitch for federated learning: each client sends a sparse part of its update (He et al. 2024)"""

    options = {
        "sparsity": (0.2, "share", "share of the weights KEPT by each client"),
        "mask_scope": (
            "layer",
            ("layer", "global", "floor"),
            "keep that share of every layer, of the whole vector, or of the vector with a least share of every layer",
        ),
        "mask_floor": (0.1, "share", "that least share, as a part of --sparsity", "mask_scope=floor"),
        "warmup_rounds": (0, "integer", "rounds in which the share kept falls to --sparsity, by one factor each"),
        "warmup_sparsity": (0.25, "share", "share kept in the first round", "warmup_rounds"),
        "localiser": ("magnitude", ("magnitude", "learned"), "keep the largest changes, or learn which to keep"),
        "graft_epochs": (10, "count", "epochs of mask learning", "localiser=learned"),
        "graft_lr": (1e7, "positive", "learning rate of the mask's logits", "localiser=learned"),
        "sigmoid_bias": (5.0, "positive", "size of the logits at the start", "localiser=learned"),
        "l1_strength": (1.0, "nonnegative", "pull of the soft mask towards sending less", "localiser=learned"),
        "residual": (
            "none",
            ("none", "client", "server"),
            "who keeps what is left out for later rounds: clients what they did not send, or the server what it did "
            "not apply, as it then changes no more than --sparsity a round",
        ),
        "residual_momentum": (0.0, "decay", "momentum of a client's updates from round to round", "residual=client"),
        "stitch": (
            "overlap",
            ("overlap", "all", "prior"),
            "divide a weight's updates by the clients that kept it, by all, or by the former and a part of the others",
        ),
        "stitch_prior": (0.5, "share", "that part", "stitch=prior"),
        "server_momentum": (0.0, "decay", "share of its last step that the server takes again"),
    }
    presets = {
        "compact": {
            "sparsity": 0.04,
            "mask_scope": "global",
            "residual": "client",
            "value_bits": 1,
            "downlink": "sparse",
            "down_sparsity": 0.02,
        }
    }
    own = ("velocity", "waiting")

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
        self.localise = Localiser(layout.sizes, self.mask_scope, self.mask_floor, learning)
        self.stitcher = Stitcher(layout, {"overlap": 0.0, "all": 1.0, "prior": self.stitch_prior}[self.stitch])
        self.means = ("update",) if self.stitch == "all" else ("update", "mask")
        self.memory = ErrorFeedback(self.residual_momentum) if self.residual == "client" else None
        self.velocity = None  # [n_trainable], the server's last step, for its momentum (Hsu et al. 2019)
        self.waiting = None  # [n_trainable], what the server did not apply (residual = server)

    def kept_share(self, round):
        """Return the share of the weights that clients keep in `round` (Lin et al. 2018, section 3.4)."""
        to_go = max(0.0, 1 - (round - 1) / self.warmup_rounds) if self.warmup_rounds else 0.0
        return self.warmup_sparsity**to_go * self.sparsity ** (1 - to_go)

    def upload(self, delta, start, client):
        n = self.layout.n_trainable
        change = self.memory.add(client.number, delta[:n]) if self.memory else delta[:n]
        mask = self.localise(change, start, client, self.kept_share(client.round))
        return Update(masked(change, mask, delta[n:], out=client.scratch), mask)

    def delivered(self, client, update):
        if self.memory:
            self.memory.sent(client.number, update.delta[: self.layout.n_trainable], update.mask)

    def held(self):
        return self.memory.held() if self.memory else {}

    def kept_length(self, name, layout):
        return layout.n_trainable if name in ("velocity", "waiting", "left", "update_velocity") else None

    def merge(self, theta, arrived):
        step, n = self.stitcher(arrived.mean["update"], arrived.mean.get("mask")), self.layout.n_trainable
        if self.server_momentum:
            if self.velocity is not None:
                step[:n] += self.server_momentum * self.velocity
            self.velocity = step[:n].clone()
        if self.residual == "server":
            total = step[:n] + (0 if self.waiting is None else self.waiting)
            step[:n] = total * self.localise.largest(total, self.sparsity)
            self.waiting = total - step[:n]
        return step.add_(theta)


@register("topk")
class TopK(LaSFL):
    """top-k of the vector with error feedback, averaged over all (Aji and Heafield 2017; Stich et al. 2018)"""

    defaults = {"sparsity": 0.01, "mask_scope": "global", "residual": "client", "stitch": "all"}


@register("stc")
class STC(LaSFL):
    """sparse ternary compression, upwards and downwards (Sattler et al. 2019, Algorithm 2)"""

    defaults = {
        "sparsity": 0.01,
        "mask_scope": "global",
        "residual": "client",
        "stitch": "all",
        "value_bits": 1,
        "downlink": "sparse",
        "down_sparsity": 0.01,
    }


@register("signsgd")
class SignSGD(FedAvg):
    """clients send only signs, and the server steps where the majority points (Bernstein et al. 2019, Algorithm 1)"""

    options = {"sign_step": (2e-3, "positive", "the server's step for every weight")}
    defaults = {"value_bits": 1, "downlink": "sparse", "down_sparsity": 1.0}
    means = ("update", "sign")

    def merge(self, theta, arrived):
        n, step = self.layout.n_trainable, arrived.mean["update"]
        step[:n] = self.sign_step * arrived.mean["sign"].sign()
        return theta + step


@register("fedbn")
class FedBN(FedAvg):
    """FedAvg of all but the normalisation layers, of which each client has its own (Li, Jiang et al. 2021)

    The server never learns these: where one model is asked for, it has the mean of the clients' layers. An update holds
    zeros for them, which are counted as sent.
    """

    defaults = {"norm": "batch"}  # it would be FedAvg without
    personalises = True

    def __init__(self, layout, **options):
        super().__init__(layout, **options)
        self.norms = {}  # client -> its layers, [k]
        ranges = [torch.arange(begin, end) for begin, end in layout.norms]
        self.places = torch.cat(ranges) if ranges else torch.arange(0)  # their places in the vector, [k]

    def _with(self, theta, norms):
        return theta.index_copy(0, self.places.to(theta.device), norms)

    def local_update(self, start, client):
        start = self.personal_start(start, client.number)
        trained = client.train(start, self.pull)
        own = self.places.to(start.device)
        self.norms[client.number] = trained[own]
        delta = torch.sub(trained, start, out=client.row)
        return self.upload(delta.index_fill_(0, own, 0), start, client)

    def personal_start(self, theta, number):
        """Return `theta [dim]` with the client's own layers, if it has any yet."""
        return self._with(theta, self.norms[number]) if number in self.norms else theta

    def held(self):
        return {"norms": self.norms}

    def kept_length(self, name, layout):
        return len(self.places) if name == "norms" else None

    def deployed(self, theta):
        if not self.norms:
            return theta
        return self._with(theta, torch.stack([self.norms[number] for number in sorted(self.norms)]).mean(0))

    def personal(self, theta, number):
        return self.personal_start(theta, number) if number in self.norms else self.deployed(theta)


def count_of(share, n):
    """Return how many a share of n are, rounded up; 0.07 of 100 are 7, whatever the last bit of the product."""
    return math.ceil(share * n - 1e-9)


@register("median")
class Median(FedAvg):
    """the median of the clients' updates, coordinate by coordinate: half may lie (Yin et al. 2018, Definition 1)

    Of an even number, the mean of the two in the middle. The clients' weights have no part in it.
    """

    means = ()

    def merge(self, theta, arrived):
        ordered, half = arrived.deltas.sort(0).values, len(arrived.deltas) // 2
        return theta + (ordered[half] if len(ordered) % 2 else ordered[half - 1 : half + 1].mean(0))


@register("trimmed_mean")
class TrimmedMean(FedAvg):
    """the mean of each coordinate without its largest and its smallest values (Yin et al. 2018, Definition 2)"""

    options = {"trim": (0.2, "half", "share of the clients left out at either end, rounded up")}
    means = ()

    def merge(self, theta, arrived):
        n = len(arrived.deltas)
        k = min(count_of(self.trim, n), (n - 1) // 2)
        return theta + arrived.deltas.sort(0).values[k : n - k].mean(0)


@register("krum")
class MultiKrum(FedAvg):
    """the mean of the updates that are nearest to the others (multi-Krum, Blanchard et al. 2017, section 4)

    With f liars among n clients, an update's score is the sum of its squared distances to the n - f - 2 next to it;
    the n - f of the lowest score are averaged, by their weights. 2f + 2 < n must hold: of fewer clients, f is lowered.
    """

    options = {"liars": (0.2, "half", "share of the clients in a round that may lie, rounded up")}
    means = ()

    def merge(self, theta, arrived):
        p, deltas = arrived.p, arrived.deltas
        n, weights = len(deltas), deltas[:, : self.layout.n_trainable]  # statistics of BatchNorm are of another size
        f = max(0, min(count_of(self.liars, n), (n - 3) // 2))
        distances = torch.cdist(weights, weights, compute_mode="donot_use_mm_for_euclid_dist").square()
        nearest = distances.sort(1).values[:, 1 : 1 + max(1, n - f - 2)]  # without itself
        chosen = nearest.sum(1).argsort(stable=True)[: max(1, n - f)].sort().values
        return theta + (p[chosen] / p[chosen].sum()) @ deltas[chosen]


@register("centralised")
class Centralised(FedAvg):
    """all training data in one place: nothing is sent, and it bounds what federated training can reach"""

    defaults = {"n_clients": 1, "participation": 1.0}
    sends = False


@register("lss")
class LSS(FedAvg):
    """FedAvg of what Local Superior Soups make (Chen et al. 2024)"""

    defaults = {"local": "lss"}


@register("swa")
class LocalSWA(FedAvg):
    """FedAvg of the clients' stochastic weight averages (Izmailov et al. 2018)"""

    defaults = {"local": "swa"}


@register("swad")
class LocalSWAD(FedAvg):
    """FedAvg of the clients' dense averages where their loss is low (Cha et al. 2021)"""

    defaults = {"local": "swad"}


@register("soups")
class LocalSoups(FedAvg):
    """FedAvg of the clients' model soups (Wortsman et al. 2022)"""

    defaults = {"local": "soups"}


@register("diwa")
class LocalDiWA(FedAvg):
    """FedAvg of averages of all of a client's mildly varied models, their head trained first (Rame et al. 2022)"""

    defaults = {"local": "soups", "soup_selection": "uniform", "soup_spread": 1.5, "probe_epochs": 1}


@register("moon")
class MOON(FedAvg):
    """FedAvg of models trained with a contrast between models (Li, He and Song 2021)"""

    defaults = {"local": "moon"}
