"""FedAvg with normalisation layers of the clients' own."""

import sys

from fedmerge.algorithms.own_layers import OwnLayers
from fedmerge.registry import algorithm


@algorithm("fedbn", title="FedBN", paper="Li, Jiang et al. 2021")
class FedBN(OwnLayers):
    """FedAvg of all but the normalisation layers, of which each client has its own (Li, Jiang et al. 2021)

    They are not sent. Where one model is asked for, it has the mean of the clients' layers.
    """

    defaults = {"norm": "batch"}  # it would be FedAvg without

    def __init__(self, layout, run=None, **options):
        super().__init__(layout, run, **options)
        if run is not None and not layout.norms:
            print("warning: --algorithm fedbn is FedAvg where no normalisation layer is trained", file=sys.stderr)

    def own_ranges(self, layout):
        return layout.norms
