"""Updates thinned at random, and averaged."""

from fedmerge.registry import merging_rule


@merging_rule(
    "dare",
    title="DARE",
    paper="Yu et al. 2024",
    needs="all updates",
    weighted=True,
    options={"dare_keep": (0.5, "share", "chance of a weight's change to stay in a client's update")},
)
def dare(aggregate, layout, dare_keep):
    """the mean of updates of which a random part is dropped and the rest made larger to make up for it (Yu et al. 2024)

    Each client's weights are drawn anew in each round. Buffers are averaged whole.
    """
    deltas, n = aggregate.deltas, layout.n_trainable
    for client, delta in zip(aggregate.arrived, deltas[:, :n], strict=True):
        delta *= (aggregate.uniform(client, n, delta) < dare_keep) / dare_keep
    return aggregate.shares(deltas) @ deltas
