"""The mean without the extremes, coordinate by coordinate."""

from fedmerge.randomness import count_of
from fedmerge.registry import merging_rule


@merging_rule(
    "trimmed_mean",
    title="trimmed mean",
    paper="Yin et al. 2018",
    needs="all updates",
    weighted=False,
    options={"trim": (0.2, "half", "share of the clients left out at either end, rounded up")},
)
def trimmed_mean(aggregate, layout, trim):
    """the mean of each coordinate without its largest and its smallest values (Yin et al. 2018, Definition 2)

    The clients' weights have no part in it. Who did not send a weight votes for leaving it as it is: with a sparse
    --compressor few weights move.
    """
    n = len(aggregate.deltas)
    k = min(count_of(trim, n), (n - 1) // 2)
    return aggregate.deltas.sort(0).values[k : n - k].mean(0)
