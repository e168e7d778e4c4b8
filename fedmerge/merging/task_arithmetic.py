"""Updates added up, not averaged."""

from fedmerge.registry import merging_rule


@merging_rule(
    "task_arithmetic",
    title="task arithmetic",
    paper="Ilharco et al. 2023",
    needs=("update",),
    weighted=True,
    options={"task_scale": (0.3, "positive", "lambda: what the sum of the clients' updates is multiplied by")},
)
def task_arithmetic(aggregate, layout, task_scale):
    """the sum of the updates, lambda times (Ilharco et al. 2023, section 2)

    That is the mean by the clients' weights, lambda n times for n clients: far above 1, rounds diverge. Buffers are
    averaged.
    """
    step = aggregate.mean["update"]
    step[: layout.n_trainable] *= task_scale * len(aggregate.arrived)
    return step
