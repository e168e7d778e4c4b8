"""The kinds of values that flags take: functions that make the value of a text, or refuse it.

Nothing here imports torch.
"""

import argparse
import math
import re
from contextlib import suppress

from fedmerge.errors import did_you_mean
from fedmerge.registry import specs

LARGEST, TINIEST = 3e38, 1e-37  # what float32 holds
VALUE_BITS = (32, 16, 8, 4, 2, 1)  # of a value on the wire: one class each in wire/quantization.py, which imports torch


def _number(convert, accepts, wanted):
    """Return an argparse type: `convert` the text, refuse what `accepts` does not, and say what is `wanted`."""

    def parse(text):
        with suppress(ValueError):
            value = convert(text)
            if math.isfinite(value) and (value == 0 or TINIEST <= abs(value) <= LARGEST) and accepts(value):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")

    return parse


def _dirichlet(text):
    if text.lower() in ("nan", "iid"):
        return "iid"
    return _number(float, lambda a: a > 0, "a positive number, nan or iid")(text)


def split_of(text):
    """Return the Spec of the partition, and the value for it or None, of what --partition has: "labels:2", "iid".

    Raises argparse.ArgumentTypeError for any other text.
    """
    name, colon, value = text.partition(":")
    spec = specs("partition").get(name)
    if spec is None:
        known = ", ".join(map(pattern, specs("partition").values()))
        raise argparse.ArgumentTypeError(f"{text!r} is none of {known}{did_you_mean(name, specs('partition'))}")
    kind = spec.more.get("value")
    if bool(kind) != bool(colon):
        raise argparse.ArgumentTypeError(f"{text!r} is not {pattern(spec)}")
    try:
        return spec, _values(kind.split(","), value) if kind else None
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not {pattern(spec)}: {error}") from None


def _values(kinds, text):
    """Return the value of a text, or, of several kinds, a tuple of those between its commas."""
    texts = text.split(",")
    if len(texts) != len(kinds):
        raise argparse.ArgumentTypeError(f"it takes {len(kinds)} values with commas between them")
    values = tuple(KINDS[kind](value) for kind, value in zip(kinds, texts, strict=True))
    return values if len(values) > 1 else values[0]


def pattern(spec):
    """Return what --partition looks like for the Spec of a partition: "iid", "labels:VALUE", "extended:VALUE,VALUE"."""
    kind = spec.more.get("value")
    return spec.name + (":" + ",".join("VALUE" for _ in kind.split(",")) if kind else "")


def _partition(text):
    spec, value = split_of(text)
    values = value if isinstance(value, tuple) else (value,)
    return spec.name if value is None else f"{spec.name}:{','.join(map(str, values))}"


def _workers(text):
    return text if text == "auto" else _number(int, lambda n: 1 <= n <= 1024, "auto or a number from 1 to 1024")(text)


def _regex(text):
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from None
    return text


KINDS = {
    "count": _number(int, lambda n: 1 <= n <= 10**6, "a whole number from 1 to 1000000"),
    "integer": _number(int, lambda n: 0 <= n < 2**63, "a whole number from 0 to 2^63 - 1"),
    "positive": _number(float, lambda x: x > 0, "a positive number"),
    "nonnegative": _number(float, lambda x: x >= 0, "a number of at least 0"),
    "share": _number(float, lambda x: 0 < x <= 1, "a share in (0, 1]"),
    "decay": _number(float, lambda x: 0 <= x < 1, "a number in [0, 1)"),
    "half": _number(float, lambda x: 0 <= x < 0.5, "a number in [0, 0.5)"),
    "dirichlet": _dirichlet,
    "partition": _partition,
    "size": _number(int, lambda n: n % 4 == 0 and 8 <= n <= 512, "a multiple of 4 from 8 to 512"),
    "bits": _number(int, VALUE_BITS.__contains__, f"{', '.join(map(str, VALUE_BITS[:-1]))} or {VALUE_BITS[-1]}"),
    "workers": _workers,
    "regex": _regex,
    "path": str,
    "dataset": str,
}
