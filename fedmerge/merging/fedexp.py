"""The mean, made longer where clients disagree."""

from fedmerge.merging.aggregate import statistic
from fedmerge.registry import merging_rule


@statistic("square")
def _square(update, begin, end):
    return update.delta[begin:end].square()


@merging_rule(
    "fedexp",
    title="FedExP",
    paper="Jhunjhunwala et al. 2023",
    needs=("update", "square"),
    weighted=True,
    options={"exp_epsilon": (1e-3, "positive", "epsilon: keeps steps short where updates all but cancel")},
)
def fedexp(aggregate, layout, exp_epsilon):
    """the mean, the longer the less updates agree (extrapolation, Jhunjhunwala et al. 2023)

    By max(1, mean |update|^2 / 2 (|mean update|^2 + epsilon)), both means by the clients' weights.
    """
    step = aggregate.mean["update"]
    weights = step[: layout.n_trainable]
    longer = aggregate.mean["square"].sum() / (2 * (weights.square().sum() + exp_epsilon))
    weights *= longer.nan_to_num(1.0, posinf=1.0).clamp_min(1)  # squares of large updates overflow
    return step
