"""What arrives at the server in a round, and how it is merged.

To add a merging rule, put a file here with a function `(aggregate, layout, **options) -> step [dim]` under
`@merging_rule("name", title=..., needs=...)`. needs: the statistics that it takes from `aggregate.mean`, or "all
updates".
"""

from fedmerge.declared import is_names, mistake
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


def needs_of(rule) -> tuple | str:
    """Return what a merging rule is registered to need: names of statistics, or ALL. Raises InputError if unclear."""
    needs = rule.registered.get("needs")
    if needs != ALL and not (needs and is_names(needs)):
        raise mistake(rule, f"needs={needs!r} is neither a tuple of names, such as ('update',), nor {ALL!r}")
    return needs


__all__ = [
    "ALL",
    "Aggregate",
    "Arrival",
    "Statistic",
    "WeightedSums",
    "add_to",
    "find_statistics",
    "needs_of",
    "statistic",
]
