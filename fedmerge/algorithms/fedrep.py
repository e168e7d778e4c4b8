"""FedAvg of the body of the network, which clients train under heads that are trained first."""

from fedmerge.algorithms.own_layers import OwnLayers
from fedmerge.registry import algorithm


@algorithm("fedrep", title="FedRep", paper="Collins et al. 2021")
class FedRep(OwnLayers):
    """clients fit a head of their own to the shared body, then the body to it (Collins et al. 2021, Algorithm 1)

    The last layer is the head: it is not sent. Where one model is asked for, it has the mean of the clients' heads.
    """

    defaults = {"local": "head_first"}

    def own_ranges(self, layout):
        return self.ends_of(layout, 1, "--algorithm fedrep")[1]
