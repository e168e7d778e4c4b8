"""Updates weighted, weight by weight, by how much each client's model hangs on it."""

from fedmerge.merging.aggregate import statistic
from fedmerge.registry import merging_rule


def measure(client, fisher_samples, fisher_floor):
    return {"fisher": client.fisher(fisher_samples)}


@statistic("fisher_weight")
def _weight(update, begin, end):
    return update.fisher[begin:end]


@statistic("fisher_update")
def _weighted_update(update, begin, end):
    return update.fisher[begin:end] * update.delta[begin:end]


@merging_rule(
    "fisher",
    title="Fisher",
    paper="Matena and Raffel 2022",
    needs=("update", "fisher_weight", "fisher_update"),
    weighted=True,
    uploads=("fisher",),
    measure=measure,
    options={
        "fisher_samples": (64, "count", "samples of a client by which it measures its Fisher information"),
        "fisher_floor": (1e-6, "positive", "added to all Fisher information: where it is less, the plain mean counts"),
    },
)
def fisher(aggregate, layout, fisher_samples, fisher_floor):
    """the mean by clients' weights times the diagonal of their Fisher information (Matena and Raffel 2022, Eq. 5)

    A client measures it at its trained model, the network as in evaluation: the mean squared gradient of the
    log-likelihood of a label that is drawn from the model's own prediction, one for each of so many of its samples. It
    sends it besides, as long as the weights are, in float32. Buffers are averaged.

    Differs from the paper: its code takes the larger of the information and the floor, and the expectation over all
    classes where these are few.
    """
    step, n = aggregate.mean["update"], layout.n_trainable
    weight, weighted = aggregate.mean["fisher_weight"], aggregate.mean["fisher_update"]
    step[:n] = weighted.add_(step[:n], alpha=fisher_floor).div_(weight.add_(fisher_floor))
    return step
