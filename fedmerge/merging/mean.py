"""The weighted mean."""

from fedmerge.registry import merging_rule


@merging_rule("mean", title="mean", paper="McMahan et al. 2017", needs=("update",), weighted=True)
def mean(aggregate, layout):
    """the clients' mean, by their weights; who did not send a weight votes for leaving it as it is"""
    return aggregate.mean["update"]
