"""Local Superior Soups within the steps of FedAvg."""

from fedmerge.local_methods.trained_pool import TrainedPool
from fedmerge.randomness import round_half_up
from fedmerge.registry import local_method


@local_method("lss_budget", averages=True)
class LSSBudget(TrainedPool):
    """Local Superior Soups in as many steps as FedAvg takes, the received model no part of the pool (Chen et al. 2024)

    The first model is trained as FedAvg trains, for --first_share of the steps; the later ones share the rest. A pool
    of one without affinity is FedAvg.

    Differs from Algorithm 1, which is `lss`: there the received model is a vertex, so that each average takes back some
    of what was trained, each model takes as many steps as FedAvg, and pull and push are of distances, not squares.
    """

    options = {"first_share": (0.75, "share", "steps of the first model, as a share of those of all")}

    def budget(self, client):
        total = self.n_steps(client, client.settings.epochs)
        first = max(1, round_half_up(self.first_share * total)) if self.n_verts > 1 else total
        left, later = total - first, self.n_verts - 1
        return [first, *(left * (i + 1) // later - left * i // later for i in range(later))]
