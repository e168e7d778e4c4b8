"""FedAvg of dynamically regularised models."""

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.merging import statistic
from fedmerge.registry import algorithm


@statistic("move", weighted=False)
def _move(update, begin, end):
    """The change of the weights, as in `update`; but each client counts alike."""
    return update.delta[begin:end]


# What is judged is made of the server's own model, which clients of a sparse downlink do not have.
@algorithm(
    "feddyn",
    title="FedDyn",
    paper="Acar et al. 2021",
    requires={"downlink": ("delta", "dense", "individual")},
)
class FedDyn(FedAvg):
    """each client's loss is tilted so that its minimum is that of all (Acar et al. 2021, Algorithm 1)

    A client keeps how far it has moved in all its rounds together, which is -1/alpha times its gradient in the paper;
    the server adds the mean of that over all clients to the models that arrive, merged. What is evaluated is these
    alone, as in their code. Nothing but a model is sent, either way. Clients that lie are in that mean, however
    models are merged.

    Differs from their code: alpha is the same for all clients, as in the paper, also where sizes differ.
    """

    defaults = {"weighting": "uniform"}
    options = {"dyn_alpha": (0.01, "positive", "alpha: the local loss has + alpha/2 |w - received + moved so far|^2")}
    statistics = ("move",)
    server_state = ("drift",)  # -1/alpha times h in the paper: [n_trainable], None before the first merge
    client_state = ("moved",)

    def gradient_correction(self, w, start, client):
        return self.dyn_alpha * (w - start + self.moved.get(client.id, 0))

    def acknowledge(self, client, decoded):
        step = client.if_finite(decoded.delta[: self.layout.n_trainable])
        self.moved[client.id] = step + self.moved.get(client.id, 0)

    def forget(self, client_id): ...  # `moved` holds what is in `drift`, and nothing that was not finite

    def merge(self, theta, step, aggregate):
        n = self.layout.n_trainable
        change = aggregate.share_of_clients * aggregate.mean["move"]
        self.drift = change if self.drift is None else self.drift + change
        step[:n] += self.drift
        return super().merge(theta, step, aggregate)

    def global_model(self, theta):
        """What the models that arrived last were merged to."""
        if self.drift is None:
            return theta
        mean = theta.clone()
        mean[: self.layout.n_trainable] -= self.drift
        return mean

    def kept_length(self, name, layout):
        return layout.n_trainable if name in ("drift", "moved") else None
