"""Runs as their records and CSVs tell of them. Each file is checked as it is read, so that nothing odd gets further:
one that is no record of a run stops only itself.
"""

import io
import math
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from fedmerge.config.declarations import check_declarations
from fedmerge.config.options import all_options
from fedmerge.config.split_files import drawn_as, drawn_name, plain, split_title
from fedmerge.errors import InputError, reason
from fedmerge.registry import specs
from fedmerge.reporting import scores
from fedmerge.reporting.run_tables import WIDEST, runs_of

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
LONGEST = 300  # characters of a setting
CURVES = [f"{part}_{what}" for what in ("accs", "losses") for part in ("train", "val", "test")]
LIMITS = {
    **{name: (0, 1 if name.endswith("accs") else 1e38) for name in CURVES},
    **{"epoch": (1, 1e9), "bytes_up": (0, 1e18), "bytes_down": (0, 1e18), "train_seconds": (0, 1e12)},
    "clients": (0, 1e9),
    "eval_seconds": (0, 1e12),
}
EMPTY = {*CURVES, "eval_seconds"}  # what a round without an evaluation does not have


@dataclass(frozen=True)
class Level:
    """How the data of a figure are split among the clients."""

    shift: str  # "label" or "feature"
    by_hand: bool
    name: str  # "iid", the concentration of the Dirichlet distribution, "labels-2", or the name of a split made by hand
    drawn: str = ""  # as --partition has it: "iid", "dirichlet:0.5", "labels:2"; "" if it is made by hand
    told: str | None = field(default=None, compare=False)  # its title, if its partition is not at hand

    @property
    def order(self):
        kind, _, value = self.drawn.partition(":")
        try:
            number = float(value)
        except ValueError:
            number = float("inf")
        return self.shift != "label", self.by_hand, kind, number, self.name

    @property
    def title(self):
        kind = f"split: {self.name}" if self.by_hand else split_title(self.drawn, self.told)
        return kind + ", a domain a client" * (self.shift == "feature")

    @property
    def cell(self):
        """What tables call it."""
        return f"feature_{self.name}" if self.shift == "feature" else self.name

    @property
    def file(self):
        """What is in the names of its figures."""
        return "split-" * self.by_hand + self.cell


@dataclass
class Run:
    """One run: its settings, how it ended, and a row a round, as far as it got."""

    path: Path
    settings: dict  # those that change the result
    level: Level
    state: str  # "finished", "diverged", "failed", "running" or "stopped"
    f1: float  # NaN unless finished
    dense_bytes: int  # of one model, weights and buffers
    rounds: pd.DataFrame
    code: str | None  # hash of the program's code
    commit: str | None  # in short, and whether there were changes to it
    data: str | None  # CRC-32 of images and labels
    partition: str | None  # SHA-256 of who holds which samples
    title: str  # what its algorithm is called

    @cached_property
    def scores(self):
        """Accuracies in single figures, see scores.py; {} before the first evaluation."""
        rows = self.rounds.dropna(subset=["test_accs"]).to_dict("records")
        return scores.accuracies(rows) if rows else {}


def load_runs(csv_dir):
    """Return the Runs of the files or tables under `csv_dir`, and {path: what is wrong} of what is no record of one.

    Raises InputError if the tables cannot be read, or FEDMERGE_PLUGINS names what is no plugin.
    """
    check_declarations()  # what is wrong with a plugin is wrong with no run
    source = runs_of(csv_dir)
    runs, foreign = [], dict(source.faults)
    for name in source.names:
        try:
            runs.append(read_run(source, name))
        except InputError as error:
            foreign[source.path(name)] = str(error)
    return runs, foreign


def printable(text):
    """Return the text with all that could steer a terminal written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def read_run(source, name):
    content = source.record(name)
    finished, failed = content.get("finished"), content.get("failed")
    _check(isinstance(finished, bool), "it does not say whether it is finished")
    _check(failed is None or isinstance(failed, str), "`failed` is no text")
    settings, environment = _settings_of(content), _dict_of(content, "environment")
    rounds = _rounds_of(source, name, settings, finished)
    sizes = [_dict_of(content, "model").get(name) for name in ("weights", "buffers")]
    _check(all(_is_count(size) for size in sizes), "it does not tell the size of its model")
    return Run(
        source.path(name),
        settings,
        _level_of(settings, _dict_of(content, "partition")),
        "finished" if finished else _ending_of(source, name, failed),
        _f1_of(content) if finished else math.nan,
        4 * sum(sizes),
        rounds,
        _text_of(environment, "code"),
        _commit_of(environment),
        _text_of(_dict_of(content, "data"), "crc32"),
        _text_of(_dict_of(content, "partition"), "sha256"),
        _title_of(settings["algorithm"], _text_of(content, "title")),
    )


def _check(condition, fault):
    if not condition:
        raise InputError(fault)


def _is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_plain(value):
    """Tell whether it is what a setting may be."""
    if isinstance(value, str):
        return len(value) <= LONGEST and value.isprintable()
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, bool) or _is_count(value)


def _dict_of(content, name):
    found = content.get(name)
    _check(found is None or isinstance(found, dict), f"its `{name}` is no JSON object")
    return found or {}


def _text_of(content, name):
    found = content.get(name)
    _check(found is None or (isinstance(found, str) and _is_plain(found)), f"its `{name}` is no text")
    return found or None


def _commit_of(environment):
    commit, changed = _text_of(environment, "commit"), environment.get("uncommitted_changes", False)
    _check(isinstance(changed, bool), "`uncommitted_changes` is neither true nor false")
    return commit and commit[:7] + " with uncommitted changes" * changed


def _settings_of(content):
    """Return {name: value} of the settings that change the result."""
    elsewhere = {name for name, option in all_options().items() if not option.named}  # folders and the like
    settings = {name: value for name, value in _dict_of(content, "settings").items() if name not in elsewhere}
    for name, value in settings.items():
        _check(_is_plain(name) and _is_plain(value), f"its setting {printable(name)[:50]} is no plain value")
    for name in ("algorithm", "dataset"):
        value = settings.get(name)
        _check(isinstance(value, str) and NAME.fullmatch(value), f"{printable(value)[:50]!r} is no name of a {name}")
    for name in ("preset", "model_name", "local", "local_optimizer", "partition", "partition_file"):
        _check(isinstance(settings.get(name), str | None), f"its setting {name} is no text")
    for name in ("n_epochs", "seed"):
        _check(_is_count(settings.get(name)), f"its setting {name} is no whole number")
    settings.setdefault("shared_init", False)  # as it was before there was such a setting
    _check(isinstance(settings["shared_init"], bool), "its setting shared_init is neither true nor false")
    return settings


def _level_of(settings, split):
    """Return the Level of a run; split: what its record says of it, {} if nothing."""
    name, title = split.get("name"), _text_of(split, "title")
    level, shift = settings.get("dirichlet"), settings.get("shift", "label")
    number = isinstance(level, int | float) and not isinstance(level, bool) and level > 0
    _check(number or level in ("iid", None), "its setting dirichlet is neither a positive number nor iid")
    _check(name is None or (isinstance(name, str) and name and _is_plain(name)), "the name of its split is no text")
    drawn = drawn_as(settings)
    _check(name or drawn is not None, "it does not say how its data are split")
    _check(shift in ("label", "feature"), "its setting shift is neither label nor feature")
    own = drawn and (str(level) if level is not None else drawn_name(drawn))
    by_hand = name is not None and name != own and not (drawn and name == plain(drawn))  # as it was called once
    if name is not None:
        settings.pop("partition_file", None)  # the name tells more: there is a file for each seed
    return Level(shift, True, name) if by_hand else Level(shift, False, own, drawn, title)


def _ending_of(source, name, failed):
    """Return the state of a run that is not finished."""
    if failed:
        return "diverged" if "not finite" in failed else "failed"
    return "running" if source.is_running(name) else "stopped"


def _title_of(algorithm, told):
    """Return what figures call an algorithm: as it is registered, or, if its plugin is not at hand, as it was."""
    spec = specs("algorithm").get(algorithm)
    return spec.title if spec else told or algorithm


def _f1_of(content):
    f1 = _dict_of(content, "final").get("f1")
    _check(isinstance(f1, int | float) and 0 <= f1 <= 1, "it is finished, but has no F1")
    return float(f1)


def _rounds_of(source, name, settings, finished):
    """Return the rounds of a run; of one that is not finished, no rows if its CSV does not tell."""
    csv, n_rounds = source.csv(name), settings["n_epochs"]
    try:
        rounds = _read_rounds(csv, source.rounds(name))
        _check(len(rounds) <= n_rounds, f"{csv} has more than the {n_rounds} rounds of the run")
        if finished:
            _check(len(rounds) == n_rounds, f"{csv} has {len(rounds)} of the {n_rounds} rounds of the run")
            judged = ["val_accs", "test_accs"] if settings.get("validation", True) else ["test_accs"]
            _check(rounds[judged].notna().all(axis=1).any(), f"{csv} has no evaluation")
    except InputError:
        if finished:
            raise
        return pd.DataFrame(columns=list(LIMITS), dtype=float)
    return rounds


def _read_rounds(csv, text):
    """Return the rounds in the text of the CSV that messages call `csv`."""
    _check(text[: text.find("\n")].count(",") < WIDEST, f"{csv} has more than the {WIDEST} columns that are read")
    try:
        table = pd.read_csv(io.StringIO(text))
        table = table if "eval_seconds" in table else table.assign(eval_seconds=math.nan)  # older ones have none
        rounds = table[list(LIMITS)].astype(float)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(f"{csv} is no CSV of a run ({reason(error)})") from None
    for name, (low, high) in LIMITS.items():
        possible = rounds[name].between(low, high) | (rounds[name].isna() & (name in EMPTY))
        _check(possible.all(), f"{csv} has an impossible {name}")
    _check(rounds["epoch"].tolist() == list(range(1, len(rounds) + 1)), f"{csv} does not count its rounds from 1")
    return rounds
