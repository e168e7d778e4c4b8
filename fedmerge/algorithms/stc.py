"""Sparse ternary compression."""

from fedmerge.algorithms.las import LaSFL
from fedmerge.registry import algorithm


@algorithm("stc", title="STC", paper="Sattler et al. 2019", server_residual=True)
class STC(LaSFL):
    """sparse ternary compression, upwards and downwards (Sattler et al. 2019, Algorithm 2)

    Differs from the paper: each 1,024 values have a mean size of their own, where the paper has one for the vector.
    """

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
