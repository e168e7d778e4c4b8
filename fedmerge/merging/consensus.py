"""The mean, without the weights that matter to one client alone, or to none."""

from fedmerge.merging.task_masks import tall_mask
from fedmerge.registry import merging_rule


@merging_rule(
    "consensus",
    title="Consensus merging",
    paper="Wang et al. 2024",
    needs="all updates",
    weighted=True,
    options={
        "consensus_clients": (2, "count", "how many clients a weight must matter to"),
        "consensus_lambda": (0.4, "positive", "lambda: how near the mean must be to a client's change, for the masks"),
    },
)
def consensus(aggregate, layout, consensus_clients, consensus_lambda):
    """the mean of updates where it serves k clients or more, by their TALL masks (Wang et al. 2024)

    Of fewer clients than k, all of them. Buffers are averaged.

    Differs from the paper: masks compare with the weighted mean, not the sum, so that lambda does not depend on the
    number of clients.
    """
    deltas, n = aggregate.deltas, layout.n_trainable
    step = aggregate.shares(deltas) @ deltas
    served = sum(tall_mask(delta, step[:n], consensus_lambda).int() for delta in deltas[:, :n])
    step[:n] *= served >= min(consensus_clients, len(deltas))
    return step
