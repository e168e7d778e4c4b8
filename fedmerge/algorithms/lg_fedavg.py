"""FedAvg of the head of the network, with bodies of the clients' own."""

from fedmerge.algorithms.own_layers import OwnLayers
from fedmerge.registry import algorithm


@algorithm("lg_fedavg", title="LG-FedAvg", paper="Liang et al. 2020")
class LGFedAvg(OwnLayers):
    """FedAvg of the last layers; each client learns to represent its data itself (Liang et al. 2020, Algorithm 1)

    All other layers are not sent. Where one model is asked for, it has the mean of the clients' layers.

    Differs from the paper: clients begin with the same representation, not each with its own, unless --init_weights
    has a trained one; and none is trained against a fair or an auxiliary loss.
    """

    options = {"lg_layers": (2, "count", "layers with weights at the end that are shared")}

    def own_ranges(self, layout):
        return self.ends_of(layout, self.lg_layers, "--lg_layers")[0]
