"""Majority votes over signs."""

from fedmerge.merging.aggregate import statistic
from fedmerge.registry import merging_rule


@statistic("sign")
def _sign(update, begin, end):
    return update.delta[begin:end].sign()


@merging_rule(
    "sign",
    title="majority of signs",
    paper="Bernstein et al. 2019",
    needs=("update", "sign"),
    options={"sign_step": (2e-3, "positive", "the server's step for every weight")},
)
def sign(aggregate, layout, sign_step):
    """a step of one size for every weight, where the majority's signs point (Bernstein et al. 2019, Algorithm 1)"""
    n, step = layout.n_trainable, aggregate.mean["update"]
    step[:n] = sign_step * aggregate.mean["sign"].sign()
    return step
