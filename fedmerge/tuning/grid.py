"""Lines of flags with several values to try, and the runs that they stand for.

    --algorithm fedavg --dataset CIFAR10 {lr: 0.1 | 0.03 | 0.01} {local_steps: 10 | 20}

stands for six points, all combinations, and each point for a run a seed.
"""

import argparse
import itertools
import math
import re
from collections import Counter
from dataclasses import dataclass

from fedmerge.config.kinds import KINDS
from fedmerge.config.options import ALIASES, all_options
from fedmerge.config.settings_files import read_flags
from fedmerge.errors import InputError

GROUP = re.compile(r"\{\s*(?:--)?([A-Za-z]\w*)\s*:(.*)\}", re.DOTALL)
BETWEEN = re.compile(r"(?:--)?([A-Za-z]\w*)=(.+?)\.\.(.+)")
NAMED = re.compile(r"(?:--)?([A-Za-z]\w*)=(.+)", re.DOTALL)
MOST = 100_000  # runs of a list


@dataclass(frozen=True)
class Template:
    """A line of flags and the values to try: words, in which a Group stands where its values go."""

    where: str  # which line of which file
    parts: tuple  # of str and Group

    @property
    def groups(self):
        return [part for part in self.parts if isinstance(part, Group)]

    def points(self):
        """Return ({name: value}, words) of all combinations of the values, in order."""
        names = [group.name for group in self.groups]
        return [(dict(zip(names, values, strict=True)), self.words(values)) for values in self._combinations()]

    def _combinations(self):
        return itertools.product(*(group.values for group in self.groups))

    def words(self, values):
        """Return the flags, a list of str, with these values, one for each group."""
        values, words = iter(values), []
        for part in self.parts:
            words += flag(part.name, next(values)) if isinstance(part, Group) else [part]
        return words


@dataclass(frozen=True)
class Group:
    """The values to try of a flag, as they are typed."""

    name: str
    values: tuple

    def is_at(self, value, end):
        """Tell whether a number is the one at an end of those that were tried."""
        return value == end


@dataclass(frozen=True)
class Range(Group):
    """Numbers to try of a flag, from `low` to `high`, which are its values, too."""

    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    log: bool = False  # tried by their logarithms: the ends are far apart

    def is_at(self, value, end):
        """Tell whether a number is within a twentieth of the range from an end of it."""
        low, high, value, end = (math.log(x) if self.log else x for x in (self.low, self.high, value, end))
        return abs(value - end) <= 0.05 * (high - low)


def flag(name, value):
    """Return the words that set a flag to a value; true and false are of flags that take none."""
    if value in ("true", "false"):
        return [f"--{name}" if value == "true" else f"--no-{name}"]
    return [f"--{name}", value]


def read_templates(path):
    """Return the Templates of a file: lines as in experiments.txt, with groups. Raises InputError, with the line."""
    return [template(words, f"{path}: line {number}") for number, words in read_flags(path)]


FAR = 10  # times the lower end, from which on numbers between two are tried by their logarithms


def range_of(text):
    """Return the Range of `name=low..high`. Raises InputError."""
    found = BETWEEN.fullmatch(text)
    if not found:
        raise InputError(f"--range {text}: is not as lr=0.001..0.3")
    name, *ends = found.groups()
    option = all_options().get(ALIASES.get(name, name))
    kind = None if option is None else KINDS.get(option.kind)
    if kind is None:
        raise InputError(f"--range {text}: there is no flag --{name} that takes numbers")
    try:
        low, high = map(kind, ends)
    except argparse.ArgumentTypeError as error:
        raise InputError(f"--range {text}: {error}") from None
    if isinstance(low, str) or isinstance(high, str) or not low < high:
        raise InputError(f"--range {text}: are not two numbers, the smaller first")
    whole = isinstance(low, int) and isinstance(high, int)
    return Range(name, tuple(ends), low, high, whole, low > 0 and high >= FAR * low)


def template(words, where, grid=(), ranges=()):
    """Return the Template of words, in which {name: value | value} are groups, of a grid of `name=value,value`, and of
    ranges, `name=low..high`.
    """
    parts, rest = [], iter(words)
    for word in rest:
        if not word.startswith("{"):
            parts.append(word)
            continue
        while not word.endswith("}"):
            more = next(rest, None)
            if more is None:
                raise InputError(f"{where}: no }} ends {word!r}")
            word += " " + more
        found = GROUP.fullmatch(word)
        if not found:
            raise InputError(f"{where}: {word!r} is not as {{lr: 0.1 | 0.03}}")
        parts.append(_group(found[1], found[2].split("|"), where))
    for text in grid:
        found = NAMED.fullmatch(text)
        if not found:
            raise InputError(f"--grid {text}: is not as lr=0.1,0.03")
        parts.append(_group(found[1], found[2].split(","), f"--grid {text}"))
    made = Template(where, (*parts, *map(range_of, ranges)))
    _check(made)
    return made


def _group(name, values, where):
    values = [value.strip() for value in values]
    if not all(values):
        raise InputError(f"{where}: a value of {name} is empty")
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise InputError(f"{where}: {name} has the value {twice[0]} twice")
    return Group(name, tuple(values))


def _check(made):
    names = [ALIASES.get(group.name, group.name) for group in made.groups]
    if not names:
        raise InputError(f"{made.where}: no values to try, such as {{lr: 0.1 | 0.03}}")
    words = [part.partition("=")[0] for part in made.parts if isinstance(part, str) and part.startswith("--")]
    given = [ALIASES.get(name, name) for name in (re.sub("^--(no-)?", "", word) for word in words)]
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"{made.where}: {name} is tried twice")
        if name in given:
            raise InputError(f"{made.where}: --{name} is given, and is to be tried, too")
    for name in ("seed", "out", "metrics_dir"):
        if name in names or name in given:
            raise InputError(f"{made.where}: --{name} is set here for all runs: leave it out of the flags")
    size = 1
    for group in made.groups:
        size *= len(group.values)
    if size > MOST:
        raise InputError(f"{made.where}: {size:,} combinations, {MOST:,} at most")
