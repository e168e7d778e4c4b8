"""Localize-and-Stitch for federated learning."""

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.registry import algorithm


@algorithm("las", title="LaS-FL", paper="He et al. 2024", server_residual=True)
class LaSFL(FedAvg):
    """Localize-and-Stitch for federated learning: each client sends a sparse part of its update (He et al. 2024)

    That is FedAvg whose clients send the largest changes (--compressor topk), stitched together where they lie (--merge
    stitch). The server may have a momentum, and may keep what of a step it does not apply (--residual server).

    Differs from the paper: they stitch models that were fine-tuned on other tasks, once; here it is what clients
    changed in a round.
    """

    options = {"server_momentum": (0.0, "decay", "share of its last step that the server takes again")}
    defaults = {"compressor": "topk", "merge": "stitch"}
    presets = {
        "compact": {
            "sparsity": 0.04,
            "mask_scope": "global",
            "residual": "client",
            "value_bits": 1,
            "downlink": "sparse",
            "down_sparsity": 0.02,
        },
        "pretrained": {  # the same from a network that was trained before: on its statistics, at a small rate
            "sparsity": 0.04,
            "mask_scope": "global",
            "residual": "client",
            "value_bits": 1,
            "downlink": "sparse",
            "down_sparsity": 0.02,
            "pretrained": True,
            "head_init": "cof",
            "head_bits": 8,
            "bn": "frozen",
            "lr": 0.002,
            "lr_decay": 0.95,
        },
    }
    server_state = (
        "velocity",  # [n_trainable], the last step, for the momentum (Hsu et al. 2019)
        "waiting",  # [n_trainable], what was not applied
    )

    def merge(self, theta, step, aggregate):
        n = self.layout.n_trainable
        if self.server_momentum:
            if self.velocity is not None:
                step[:n] += self.server_momentum * self.velocity
            self.velocity = step[:n].clone()
        if self.run.server_residual:
            total = step[:n] + (0 if self.waiting is None else self.waiting)
            step[:n] = total * self.compressor.largest(total)
            self.waiting = total - step[:n]
        return step.add_(theta)

    def kept_length(self, name, layout):
        return layout.n_trainable if name in LaSFL.server_state else None
