"""The median, coordinate by coordinate."""

from fedmerge.registry import merging_rule


@merging_rule("median", title="median", paper="Yin et al. 2018", needs="all updates", weighted=False)
def median(aggregate, layout):
    """the median of each coordinate: half of the clients may lie (Yin et al. 2018, Definition 1)

    Of an even number, the mean of the two in the middle. The clients' weights have no part in it. Who did not send a
    weight votes for leaving it as it is: with a sparse --compressor few weights move.
    """
    ordered, half = aggregate.deltas.sort(0).values, len(aggregate.deltas) // 2
    return ordered[half] if len(ordered) % 2 else ordered[half - 1 : half + 1].mean(0)
