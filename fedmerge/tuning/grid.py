"""Lines of flags with several values to try, and the runs that they stand for.

    --algorithm fedavg --dataset CIFAR10 {lr: 0.1 | 0.03 | 0.01} {local_steps: 10 | 20}

stands for six points, all combinations, and each point for a run a seed.
"""

import itertools
import re
from collections import Counter
from dataclasses import dataclass

from fedmerge.config.options import ALIASES
from fedmerge.config.parser import read_flags
from fedmerge.errors import InputError

GROUP = re.compile(r"\{\s*(?:--)?([A-Za-z]\w*)\s*:(.*)\}", re.DOTALL)
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


def flag(name, value):
    """Return the words that set a flag to a value; true and false are of flags that take none."""
    if value in ("true", "false"):
        return [f"--{name}" if value == "true" else f"--no-{name}"]
    return [f"--{name}", value]


def read_templates(path):
    """Return the Templates of a file: lines as in experiments.txt, with groups. Raises InputError, with the line."""
    return [template(words, f"{path}: line {number}") for number, words in read_flags(path)]


def template(words, where, grid=()):
    """Return the Template of words, in which {name: value | value} are groups, and of a grid of `name=value,value`."""
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
    made = Template(where, tuple(parts))
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
