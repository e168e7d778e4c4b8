"""Which point of a grid is the best, by the validation accuracy of its runs. Nobody looks at test accuracies here."""

import argparse
import math
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from fedmerge.config.kinds import KINDS
from fedmerge.config.options import ALIASES, all_options

BY = {  # the names of figures in reporting/scores.py
    "last": "val_accuracy",
    "last10": "val_accuracy_last10",
    "best": "val_accuracy_best",
}


@dataclass
class Point:
    """Values that were tried, and what their runs reached."""

    values: dict  # {name of a flag: value, as typed}
    words: list  # the flags, without seed and folder
    accuracies: dict = field(default_factory=dict)  # {seed: validation accuracy, 0 to 1}
    failed: dict = field(default_factory=dict)  # {seed: why}

    @property
    def mean(self):
        """The mean over the seeds; NaN if a run failed, since other seeds would be another comparison."""
        return math.nan if self.failed or not self.accuracies else float(np.mean(list(self.accuracies.values())))

    @property
    def deviation(self):
        """The sample deviation over the seeds, NaN of one."""
        values = list(self.accuracies.values())
        return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan

    @property
    def text(self):
        return ", ".join(f"{name}={value}" for name, value in self.values.items())


@dataclass
class Choice:
    """The best of the Points of a grid, and how sure that is. Points are in order, the best first, those that failed
    last.
    """

    points: list
    groups: list  # of grid.Group

    @property
    def best(self):
        """The best Point, None if all failed."""
        return self.points[0] if self.points and not math.isnan(self.points[0].mean) else None

    @property
    def second(self):
        return self.points[1] if len(self.points) > 1 and not math.isnan(self.points[1].mean) else None

    @property
    def margin(self):
        """[by how much the best is ahead of the second with each seed], as accuracies; None without a second."""
        if self.best is None or self.second is None:
            return None
        return [self.best.accuracies[seed] - self.second.accuracies[seed] for seed in self.best.accuracies]

    @property
    def at_end(self):
        """[(name, value, "smallest" or "largest")] of numbers of which the best is the last that was tried, though the
        flag takes others beyond it.
        """
        ends = []
        for group in self.groups if self.best else ():
            numbers = _numbers(group.values)
            if len(set(numbers)) < 2:
                continue
            value = self.best.values[group.name]
            for end, number in (("smallest", min(numbers)), ("largest", max(numbers))):
                if group.is_at(float(value), number) and has_more(group.name, number, end):
                    ends.append((group.name, value, end))
        return ends


def choose(points, groups):
    """Return the Choice of the Points; of several with the same mean, the first is the best."""
    order = sorted(points, key=lambda point: -math.inf if math.isnan(point.mean) else point.mean, reverse=True)
    return Choice(order, list(groups))


def has_more(name, number, end):
    """Tell whether a flag takes numbers that are smaller, or larger, than this one."""
    option = all_options().get(ALIASES.get(name, name))  # None of a plugin of another line
    kind = None if option is None else KINDS.get(option.kind)
    if kind is None:
        return True
    step = -1 if end == "smallest" else 1
    whole = [int(number) + step, int(number) + 4 * step, int(number) * 2**step]
    for beyond in (*map(int, whole), number + step * (abs(number) or 1) / 1000):
        with suppress(argparse.ArgumentTypeError):
            value = kind(str(beyond))
            if isinstance(value, str) or (value - number) * step > 0:
                return True
    return False


def _numbers(values):
    """Return the values as numbers, [] if one is none."""
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return []
    return numbers if all(map(math.isfinite, numbers)) else []
