"""What arrives at the server in a round, and how it is merged.

To add a merging rule, put a file here with a function `(aggregate, layout, **options) -> step [dim]` under
`@merging_rule("name", title=..., needs=...)`. needs: the statistics that it takes from `aggregate.mean`, or "all
updates".
"""

from fedmerge.merging.aggregate import (
    Aggregate,
    Arrival,
    Statistic,
    WeightedSums,
    add_to,
    find_statistics,
    statistic,
)

ALL = "all updates"

__all__ = ["ALL", "Aggregate", "Arrival", "Statistic", "WeightedSums", "add_to", "find_statistics", "statistic"]
