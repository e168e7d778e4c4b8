"""Series: the runs that differ in nothing but their seed. Labels for them, and which of them to draw."""

import argparse
import math
import re
from collections import Counter
from dataclasses import dataclass, field

import pandas as pd

from fedmerge.config.options import all_options, component_options
from fedmerge.config.run_name import DECIDING, acting, default_settings
from fedmerge.errors import InputError, did_you_mean
from fedmerge.registry import AXES, specs
from fedmerge.reporting.runs import Level

FIRST = (
    "fedavg",
    "fedprox",
    "fedacg",
    "las",
    "topk",
    "stc",
    "signsgd",
    "moon",
    "fedbn",
    "swa",
    "swad",
    "soups",
)  # in legends
ELSEWHERE = ("seed", "dirichlet", "partition", "dataset", "algorithm", "shift")  # told of a series in other places
UNFINISHED = ", unfinished"  # runs, told after the label
SWEPT = 3  # as many settings that differ within an algorithm are told with every value, the default too


@dataclass
class Series:
    """Runs of one figure that differ only in their seed: `runs` are drawn; `missing` did not end, and are not."""

    level: Level
    name: str  # made of its settings
    runs: list
    missing: list
    settings: dict  # name -> text, of those that have an effect
    told: list  # names of the settings that any of the labels tells
    label: str = ""  # what it is called in figures and tables
    style: int = 0  # which of the colours, lines and markers

    @property
    def algorithm(self):
        return self.members[0].settings["algorithm"]

    @property
    def title(self):
        return self.members[0].title

    @property
    def members(self):
        return self.runs + self.missing

    @property
    def unfinished(self):
        return bool(self.runs) and self.runs[0].state != "finished"

    @property
    def count(self):
        """How many runs it has, in words: "3", "1 of 2, 1 diverged"."""
        states = Counter(run.state for run in self.members if run.state != "finished")
        n = f"{len(self.runs)} of {len(self.members)}" if self.missing else f"{len(self.runs)}"
        return ", ".join([n, *(f"{number} {state}" for state, number in states.items())])

    @property
    def legend(self):
        return f"{self.label} (n={self.count})"

    def scores(self, name):
        """Return {name of scores.accuracies: value} of the runs drawn, as a pandas Series of one of them."""
        return pd.Series([run.scores[name] for run in self.runs], dtype=float)


def group_series(runs, unfinished=False):
    """Return the list of Series of the runs of one dataset, level by level; a label is the same at every level.

    It is the algorithm's name, and what is not at its default: its preset, its own options, and the settings in which
    the runs differ. Those of at most SWEPT settings that differ within an algorithm are told at their default, too.
    unfinished: draw runs that did not end, as series of their own.
    """
    methods = {}
    for run in sorted(runs, key=lambda run: run.path):
        methods.setdefault(_method_of(run), []).append(run)
    labels, told = _labels(methods)
    found = []
    for method, members in sorted(methods.items(), key=lambda item: (_rank(item[1][0]), _natural(labels[item[0]]))):
        for level in {run.level for run in members}:
            here = [run for run in members if run.level == level]
            done = [run for run in here if run.state == "finished"]
            begun = [run for run in here if run.state != "finished" and run.scores] if unfinished else []
            rest = [run for run in here if run not in done and run not in begun]
            if done or not begun:
                found.append(Series(level, labels[method], done, rest, dict(method[1]), told))
            if begun:
                found.append(Series(level, labels[method] + UNFINISHED, begun, [], dict(method[1]), told))
    for series in found:
        series.label = series.name
    return restyled(sorted(found, key=lambda series: series.level.order))


def with_bounds(runs, unfinished=False):
    """Return the Series of the federated runs of one dataset, and those of its runs with all data in one place, which
    bound the others; these are the first if there are no others.
    """
    central = [run for run in runs if run.settings["algorithm"] == "centralised"]
    federated = [run for run in runs if run.settings["algorithm"] != "centralised"]
    if not federated:
        return group_series(central, unfinished), []
    return group_series(federated, unfinished), group_series(central, unfinished)


def restyled(found):
    """Return the list of Series with the styles 0, 1, 2, ... for their labels."""
    places = {label: place for place, label in enumerate(dict.fromkeys(series.label for series in found))}
    for series in found:
        series.style = places[series.label]
    return found


def _rank(run):
    name = run.settings["algorithm"]
    return FIRST.index(name) if name in FIRST else len(FIRST), name


def _natural(label):
    """Return what sorts labels with their numbers by size."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", label)
    return [(float(part), "") if i % 2 else (-1, part) for i, part in enumerate(parts)]


def _method_of(run):
    """Return the algorithm of a Run, and (name, text) of each setting that has an effect and is not told elsewhere."""
    algorithm = run.settings["algorithm"]
    settings = acting(own_defaults(run.settings) | run.settings)
    elsewhere = {*ELSEWHERE, *(name for name, option in all_options().items() if not option.named)}
    return algorithm, tuple(sorted((name, str(v)) for name, v in settings.items() if name not in elsewhere))


def own_defaults(settings):
    """Return {name: value} of what a run of this algorithm, preset, model and dataset has unless told otherwise."""
    chosen = {name: settings.get(name, all_options()[name].default) for name in DECIDING}
    try:
        return default_settings(argparse.Namespace(**chosen))
    except (KeyError, InputError):  # an algorithm, preset or optimiser that this version does not have
        plain = {name: all_options()[name].default for name in ("algorithm", "preset", "local_optimizer")}
        return default_settings(argparse.Namespace(**chosen | plain))


def _labels(methods):
    """Return {method: label}, and the names of the settings that any of the labels tells."""
    settings = {method: dict(method[1]) for method in methods}
    usual = {method: _usual(members[0].settings) for method, members in methods.items()}
    always = {"preset", *AXES, *component_options()} - {"algorithm"}
    differing = _differing(settings.values())
    told, known = {}, set(all_options())
    for method in methods:
        family = [other for other in methods if _family(other) == _family(method)]
        varying = _varying(settings[other] for other in family)
        swept = varying - _differing(usual[other] for other in family)
        swept = swept if len(swept) <= SWEPT else swept - known  # of what is not at hand, nobody knows the default
        swept |= differing & {"shared_init"}  # whoever draws both has them told apart
        told[method] = {
            name: value
            for name, value in settings[method].items()
            if name in swept or (name in known and name in differing | always and value != usual[method].get(name))
        }
    labels, titles = {}, _titles(methods)
    for method in methods:
        labels[method] = " ".join([titles[method], *_words(told[method])])
    for label in [label for label, n in Counter(labels.values()).items() if n > 1]:
        alike = [method for method in methods if labels[method] == label]
        names = _differing(settings[method] for method in alike)
        for method in alike:
            told[method] |= {name: value for name, value in settings[method].items() if name in names}
            labels[method] = " ".join([titles[method], *_words(told[method])])
    return labels, list(dict.fromkeys(name for method in methods for name in sorted(told[method], key=_first_preset)))


def _titles(methods):
    """Return {method: title of its algorithm}, with the algorithm's name where several have the same."""
    titles = {method[0]: members[0].title for method, members in methods.items()}
    counts = Counter(titles.values())
    return {method: _apart(titles[method[0]], method[0], counts) for method in methods}


def _apart(title, name, counts):
    return title if counts[title] < 2 else f"{title} ({name})"


def _usual(settings):
    """Return {name: text} of a method's defaults, but for the network: that is told wherever it differs."""
    return {name: str(value) for name, value in own_defaults(settings).items() if name != "model_name"}


def _family(method):
    return method[0], dict(method[1]).get("preset")


def _differing(dicts):
    """Return the keys that do not have the same value in all of the dicts."""
    dicts = list(dicts)
    return {name for d in dicts for name in d if len({other.get(name) for other in dicts}) > 1}


def _varying(dicts):
    """Return the keys that have several values in those of the dicts that have them."""
    values = {}
    for name, value in (item for d in dicts for item in d.items()):
        values.setdefault(name, set()).add(value)
    return {name for name, seen in values.items() if len(seen) > 1}


def _first_preset(name):
    return name != "preset", name


def _words(told):
    return [f"{name}={_called(name, told[name])}" for name in sorted(told, key=_first_preset)]


def _called(name, value):
    """Return what a figure calls the value of a setting: a component by its title, if it is at hand."""
    shelf = specs(name) if name in AXES else {}
    if value not in shelf:
        return value
    return _apart(shelf[value].title, value, Counter(spec.title for spec in shelf.values()))


def choose(found, bounds, wanted):
    """Return those of the Series `found`, and of `bounds`, that have one of the labels or algorithms `wanted`, in this
    order.

    Raises InputError if there is none of one of them.
    """
    chosen = {}
    for word in wanted:
        exact = [s for s in found + bounds if s.name in (word, f"{word}{UNFINISHED}") or s.label == word]
        same = [s for s in found + bounds if word.lower() in (s.algorithm.lower(), s.title.lower())]
        if not (exact or same):
            algorithms = {series.algorithm for series in found + bounds}
            raise InputError(f"--methods {unknown(word, found + bounds, algorithms)}")
        chosen |= {id(series): series for series in exact or same if id(series) not in chosen}
    kept = [
        [series for series in chosen.values() if any(series is other for other in group)] for group in (found, bounds)
    ]
    return [restyled(sorted(group, key=lambda series: series.level.order)) for group in kept]


def rename(found, pairs):
    """Give the Series the labels of the pairs "old=new". Raises InputError if there is no such old one."""
    for pair in pairs:
        named = [series for series in found if pair.startswith(f"{series.name}=")]
        if not named:
            raise InputError(f"--label {unknown(pair, found)}")
        name = max((series.name for series in named), key=len)
        for series in named:
            if series.name == name:
                series.label = pair[len(name) + 1 :]
    labels = {series.name: series.label for series in found}
    for label, n in Counter(labels.values()).items():
        if n > 1:
            raise InputError(f"--label: {n} series would have the label {label!r}")


def unknown(word, found, also=()):
    """Return in words that there is no Series of this label, and which there are; also: other words that would do."""
    labels = list(dict.fromkeys(series.label for series in found))
    hint = did_you_mean(word, [*labels, *also])
    return f"{word!r}: there is no such series{hint}; there are " + ", ".join(map(repr, labels))


@dataclass
class Reference:
    """What the others are compared with, at each level."""

    of: dict = field(default_factory=dict)  # Level -> Series
    chosen: bool = False  # by its validation accuracy, of several

    def words(self):
        """Return in words which it is, "" if there is none."""
        labels = {level.cell: series.label for level, series in self.of.items()}
        if not labels:
            return ""
        if len(set(labels.values())) == 1:
            which = next(iter(labels.values()))
        else:
            which = ", ".join(f"at {cell} {label}" for cell, label in labels.items())
        return which + " (of plain FedAvg, the one whose best round has the best validation accuracy)" * self.chosen


def pick_reference(found, wanted=None):
    """Return the Reference among the Series: those of the label `wanted`, or at each level the plain FedAvg with the
    best mean validation accuracy (each run's best round), one of which all runs ended if there is any.

    Raises InputError if none has that label.
    """
    drawn = [series for series in found if series.runs and not series.unfinished]
    if wanted is not None:
        of = {series.level: series for series in drawn if wanted in (series.label, series.name)}
        if not of and any(wanted in (series.label, series.name) for series in found):
            raise InputError(f"--reference {wanted!r}: none of its runs is finished")
        if not of:
            raise InputError(f"--reference {unknown(wanted, drawn)}")
        return Reference(of)
    best, chosen = {}, False
    for series in filter(is_plain_fedavg, drawn):
        other = best.setdefault(series.level, series)
        chosen |= other is not series
        best[series.level] = max(other, series, key=_promise)
    return Reference(best, chosen)


def _promise(series):
    """Return what sorts Series: those with all their runs last, of these the best validation accuracy last.

    Those without validation data come before all others.
    """
    reached = series.scores("val_accuracy_best").mean()
    return not series.missing, -1.0 if math.isnan(reached) else reached


def is_plain_fedavg(series):
    """Tell whether it is FedAvg of honest clients that send whole models in float32, which are averaged."""
    settings = series.members[0].settings
    plain = {"local": "sgd", "compressor": "none", "merge": "mean", "value_bits": 32, "attack": None, "dropout": 0}
    if series.algorithm != "fedavg" or any(settings.get(name, value) != value for name, value in plain.items()):
        return False
    return settings.get("downlink", "delta") in ("delta", "dense")
