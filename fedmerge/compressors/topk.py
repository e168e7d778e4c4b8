"""The largest changes, or those that a client learns are worth sending."""

import torch

from fedmerge.compressors.base import Compressor
from fedmerge.compressors.largest import mark_largest, top_k_mask
from fedmerge.registry import compressor


@compressor("topk", title="top-k", paper="He et al. 2024", server_residual=True)
class TopK(Compressor):
    """the largest changes of each layer, or of all (the "dataless" localisation of He et al. 2024), or learned ones

    At least one weight of each layer is sent, if the share is of layers.

    Differs from their code: learning a mask takes a step a batch, with the gradient of the L1 term itself; theirs takes
    one a pass over the data, with a regulariser that pushes logits away from 0.
    """

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
    }

    def choose(self, change, start, client):
        mask = self.largest(change, self.kept_share(client.round))
        if self.localiser == "magnitude":
            return mask
        how = {"epochs": self.graft_epochs, "lr": self.graft_lr, "bias": self.sigmoid_bias}
        return client.learn_mask(start, change, mask, **how, l1_strength=self.l1_strength)

    def kept_share(self, round):
        """Return the share of the weights that clients keep in `round` (Lin et al. 2018, section 3.4)."""
        to_go = max(0.0, 1 - (round - 1) / self.warmup_rounds) if self.warmup_rounds else 0.0
        return self.warmup_sparsity**to_go * self.sparsity ** (1 - to_go)

    def largest(self, change, keep=None):
        """Return the mask of the largest |change|, bool [n_trainable]: a share `keep` of them, --sparsity if not given.

        mask_scope: "layer" keeps that share of each layer, "global" of all weights, "floor" of all weights but at least
        `keep * mask_floor` of each layer.
        """
        keep = self.sparsity if keep is None else keep
        if self.mask_scope != "floor":
            return top_k_mask(change, keep, self.layout.sizes if self.mask_scope == "layer" else (len(change),))
        least = top_k_mask(change, keep * self.mask_floor, self.layout.sizes)
        k = max(int(least.sum()), round(keep * len(change)))
        mask = torch.zeros_like(least)
        mark_largest(change.masked_fill(least, torch.inf), k, mask)
        return mask
