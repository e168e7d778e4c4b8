"""Localize-and-Stitch for federated learning."""

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.client_update import Update
from fedmerge.compressors.error_feedback import ErrorFeedback
from fedmerge.compressors.largest import masked
from fedmerge.compressors.localiser import Localiser
from fedmerge.merging.stitching import Stitcher
from fedmerge.registry import algorithm


@algorithm("las", title="LaS-FL")
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
