"""What arrives at the server in a round, and how it is merged.

To add a merging rule, put a file here with a function `(aggregate, layout, **options) -> step [dim]` under
`@merging_rule("name", title=..., needs=...)`. needs: the statistics that it takes from `aggregate.mean`, or "all
updates". What else the decorator may say:

    uploads   names of vectors that clients send besides their change, for it
    measure   a function (client, **options) -> {name: vector} that makes them, once the client has trained
    lengths   a function (layout, **options) -> {name: length} of them (without it, each is as long as the weights)
"""

from collections.abc import Callable

from fedmerge.declared import check_arguments, check_vector, is_names, mistake
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


def measured_for(rule, layout, options: dict) -> tuple[dict, Callable | None]:
    """Return what a merging rule with these options has clients send besides their change: {name: length}, and a
    function (client) -> {name: vector}. Raises InputError where the rule's own functions do not say the same.
    """
    said, names = rule.registered, rule.registered.get("uploads", ())
    if not names:
        return {}, None
    lengths = dict.fromkeys(names, layout.n_trainable)
    if "lengths" in said:
        check_arguments(said["lengths"], ("layout",), options)
        lengths = said["lengths"](layout, **options)
    if "measure" not in said or not isinstance(lengths, dict) or set(lengths) != set(names):
        raise mistake(rule, f"uploads={names!r} needs measure=..., and lengths=... of the same names, if any")

    check_arguments(said["measure"], ("client",), options)

    def measure(client):
        found = said["measure"](client, **options)
        if not isinstance(found, dict):
            raise mistake(said["measure"], f"returns a {type(found).__name__}, not a dict {{name: vector}}")
        if set(found) != set(names):
            raise mistake(said["measure"], f"measures {', '.join(found) or 'nothing'}, not {', '.join(names)}")
        like = client.model.vector
        return {name: check_vector(found[name], like, lengths[name], said["measure"], name) for name in lengths}

    return lengths, measure


__all__ = [
    "ALL",
    "Aggregate",
    "Arrival",
    "Statistic",
    "WeightedSums",
    "add_to",
    "find_statistics",
    "measured_for",
    "needs_of",
    "statistic",
]
