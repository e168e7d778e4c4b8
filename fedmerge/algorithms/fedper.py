"""FedAvg of the body of the network, with heads of the clients' own."""

from fedmerge.algorithms.own_layers import OwnLayers
from fedmerge.registry import algorithm


@algorithm("fedper", title="FedPer", paper="Arivazhagan et al. 2019")
class FedPer(OwnLayers):
    """FedAvg of all but the last layers, of which each client has its own (Arivazhagan et al. 2019, Algorithm 1)

    They are not sent. Where one model is asked for, it has the mean of the clients' layers.
    """

    options = {"fedper_layers": (1, "count", "K_P: layers with weights at the end that each client keeps")}

    def own_ranges(self, layout):
        return self.ends_of(layout, self.fedper_layers, "--fedper_layers")[1]
