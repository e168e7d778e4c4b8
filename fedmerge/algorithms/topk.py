"""Top-k with error feedback."""

from fedmerge.algorithms.las import LaSFL
from fedmerge.registry import algorithm


@algorithm("topk", title="top-k", paper="Stich et al. 2018", server_residual=True)
class TopK(LaSFL):
    """top-k of the vector with error feedback, averaged over all (Aji and Heafield 2017; Stich et al. 2018)"""

    defaults = {
        "compressor": "topk",
        "merge": "stitch",
        "sparsity": 0.01,
        "mask_scope": "global",
        "residual": "client",
        "stitch": "all",
    }
