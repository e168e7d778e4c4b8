"""The algorithms: what the server broadcasts, what a client adds and sends, and how updates merge.

They are in fedmerge/algorithms/.
"""

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.client_update import Update
from fedmerge.registry import ALGORITHMS

__all__ = ["ALGORITHMS", "FedAvg", "Update"]
