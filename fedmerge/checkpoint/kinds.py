"""What values read from a file must be: a kind is a function that raises ValueError, which says why a value is not one.

Kinds of containers are made of those of their entries, so that what a whole file must hold is written down as such.
"""

import math

from fedmerge.tensor_files import is_plain

MANY = 2**63 - 1


def refuse_unless(so, why):
    if not so:
        raise ValueError(why)


def whole(low=0, high=MANY):
    """A whole number from low to high."""

    def check(value):
        refuse_unless(type(value) is int and low <= value <= high, f"is not a whole number from {low} to {high}")

    return check


def number(low=-math.inf, high=math.inf, finite=True):
    """A number from low to high; if not `finite`, infinite ones and what is none will do."""

    def check(value):
        known = type(value) is float or (type(value) is int and abs(value) <= MANY)
        fits = known and (not finite or (math.isfinite(value) and low <= value <= high))
        refuse_unless(fits, f"is not a number from {low} to {high}")

    return check


def text(value):
    refuse_unless(type(value) is str, "is no text")


def truth(value):
    refuse_unless(type(value) is bool, "is not true or false")


def nothing(value):
    refuse_unless(value is None, "is something")


def named(kind):
    """A dict of any names and of values of a kind."""

    def check(value):
        refuse_unless(type(value) is dict and all(type(name) is str for name in value), "is no dict of names")
        for name, entry in value.items():
            _check(kind, entry, name)

    return check


def either(*kinds):
    """A value of one of the kinds; what the last one says is said."""

    def check(value):
        for kind in kinds[:-1]:
            try:
                return kind(value)
            except ValueError:
                pass
        return kinds[-1](value)

    return check


def tensor(shape=None, dtype=None, like=None, low=None, high=None, finite=True):
    """A dense, contiguous tensor of numbers, from low to high, on the kind of device of the tensor `like`."""

    def check(value):
        refuse_unless(is_plain(value) and value.is_contiguous(), "is not a dense tensor")
        refuse_unless(shape is None or value.shape == shape, f"is not of the shape {shape}")
        refuse_unless(dtype is None or value.dtype == dtype, f"is not of {dtype}")
        refuse_unless(like is None or value.device.type == like.device.type, "is on another device")
        refuse_unless(not finite or bool(value.isfinite().all()), "is not finite")
        if low is not None and value.numel():
            refuse_unless(low <= int(value.min()) and int(value.max()) <= high, f"is not from {low} to {high}")

    return check


def scalar(value):
    """A tensor of one number, finite or not."""
    refuse_unless(is_plain(value) and value.dim() == 0, "is no scalar tensor")


def many(kind, length=None):
    """A list, of this length if given, of values of a kind."""

    def check(value):
        refuse_unless(type(value) is list, "is no list")
        refuse_unless(length is None or len(value) == length, "is of another length")
        for place, entry in enumerate(value):
            _check(kind, entry, place)

    return check


def mapping(keys, kind):
    """A dict of keys that `keys` contains and values of a kind."""

    def check(value):
        refuse_unless(type(value) is dict, "is no dict")
        for key, entry in value.items():
            refuse_unless(type(key) is int and key in keys, f"has the key {str(key)[:20]}")
            _check(kind, entry, key)

    return check


def fields(required, optional=()):
    """A dict of what `required` {name: kind} names, and perhaps of what `optional` does, and of nothing else."""
    optional = dict(optional)

    def check(value):
        refuse_unless(type(value) is dict, "is no dict")
        missing, more = set(required) - set(value), set(value) - set(required) - set(optional)
        refuse_unless(not missing, f"lacks {', '.join(sorted(missing))}")
        refuse_unless(not more, f"has {', '.join(sorted(map(str, more)))[:60]} besides")
        for name, entry in value.items():
            _check(required.get(name) or optional[name], entry, name)

    return check


def _check(kind, value, place):
    try:
        kind(value)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
