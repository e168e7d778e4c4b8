"""Sparse ternary compression."""

from fedmerge.algorithms.las import LaSFL
from fedmerge.registry import algorithm


@algorithm("stc", title="STC", paper="Sattler et al. 2019", server_residual=True)
class STC(LaSFL):
    """sparse ternary compression, upwards and downwards (Sattler et al. 2019, Algorithm 2)"""

    defaults = {
        "compressor": "topk",
        "merge": "stitch",
        "sparsity": 0.01,
        "mask_scope": "global",
        "residual": "client",
        "stitch": "all",
        "value_bits": 1,
        "downlink": "sparse",
        "down_sparsity": 0.01,
    }
