"""Runs of a folder as pandas frames, and as one figure: for notebooks and scripts."""

import math
from pathlib import Path

import pandas as pd

from fedmerge.config.options import all_options
from fedmerge.config.run_name import acting
from fedmerge.errors import InputError, did_you_mean
from fedmerge.reporting import comparable, scores
from fedmerge.reporting import runs as records
from fedmerge.reporting import series as grouping
from fedmerge.reporting.run_list import folder_of, name_of


def load_runs(folder: str | Path = "metrics") -> pd.DataFrame:
    """Return the runs of a folder, a row each: `run`, `state`, `split`, the settings that have an effect, by their
    names, then figures.

    folder: with the records of runs, an `out=` folder, or one with the tables of a study. Figures: `rounds` that are
    done; `accuracy` and others of reporting.scores, between 0 and 1; `bytes_up`, `bytes_down`, `seconds` of training;
    `less_up`, `less_in_all`: how many times less than if clients sent, and got, whole models in float32. What is no
    record of a run is left out. Raises InputError if there is no such folder.

    >>> runs = load_runs("results/compact_digits")
    >>> runs.query("algorithm == 'las' and preset == 'compact'").groupby("split").less_up.mean().round()
    split
    0.1    115.0
    0.5    115.0
    iid    115.0
    Name: less_up, dtype: float64
    """
    found = _runs_of(folder)
    first = [{"run": name_of(run), "state": run.state, "split": run.level.cell} for run in found]
    settings = [{name: v for name, v in acting(run.settings).items() if v is not None} for run in found]
    figures = [_figures(run) for run in found]
    if not found:
        named = [name for name, option in all_options().items() if option.named]
        return pd.DataFrame(columns=[*FIRST, *named, *FIGURES])
    taken = {*FIRST, *FIGURES}  # which an option of a plugin may be called, too
    settings = [{f"settings.{n}" if n in taken else n: v for n, v in row.items()} for row in settings]
    return pd.concat([pd.DataFrame(rows) for rows in (first, settings, figures)], axis=1)


WAYS = ("bytes_up", "bytes_down")
FIRST = ("run", "state", "split")
FIGURES = ("rounds", *scores.NAMES.split(), "bytes_up", "bytes_down", "seconds", "less_up", "less_in_all")


def _figures(run):
    sums = run.rounds[["bytes_up", "bytes_down", "train_seconds", "clients"]].sum()
    up, both, dense = sums["bytes_up"], sums["bytes_up"] + sums["bytes_down"], run.dense_bytes * sums["clients"]
    return {
        "rounds": len(run.rounds),
        **(dict.fromkeys(scores.NAMES.split()) | run.scores),
        "bytes_up": up,
        "bytes_down": sums["bytes_down"],
        "seconds": sums["train_seconds"],
        "less_up": dense / up if up else math.nan,
        "less_in_all": 2 * dense / both if both else math.nan,
    }


def load_rounds(folder: str | Path = "metrics") -> pd.DataFrame:
    """Return the rounds of all runs of a folder, a row each: `run`, `epoch`, accuracies and losses of `train`, `val`
    and `test`, `bytes_up` and `bytes_down` of all clients of the round, `bytes_up_total` and `bytes_down_total` of all
    rounds up to it, `train_seconds`, `eval_seconds`, `clients`.

    Raises InputError as load_runs does.

    >>> load_rounds("results/compact_digits").groupby("run").bytes_up.sum().min() > 0
    np.True_
    """
    found = [
        run.rounds.assign(run=name_of(run), **{f"{way}_total": run.rounds[way].cumsum() for way in WAYS})
        for run in _runs_of(folder)
    ]
    columns = ["run", *records.LIMITS, *(f"{way}_total" for way in WAYS)]
    frame = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=columns)
    frame = frame.astype({"epoch": int, "clients": int})
    return frame[["run", *frame.columns.drop("run")]]


def compare(folder: str | Path = "metrics", dataset: str | None = None, split: str | None = None, **look):
    """Return a matplotlib Figure of the runs of a folder: test accuracy over rounds and over megabytes, a line for runs
    that differ only in their seed, as plotting.py draws it.

    dataset, split: which, if there are several; a split as load_runs has it, "iid" or "0.1". look: `methods`, a list
    of labels or algorithms in their order; `labels`, {label: another one}; `panels`, of "round", "up", "down",
    "both"; `ylim`, (low, high) in per cent; `width` in inches; `unfinished`, `mix`: see plotting.py. Raises
    InputError if there is nothing to draw, or it cannot be compared.

    >>> figure = compare("results/compact_digits", split="iid", methods=["FedAvg value_bits=32", "las"])
    >>> figure.legends[0].get_texts()[0].get_text()
    'FedAvg value_bits=32 (n=3)'
    """
    from fedmerge.reporting import curves  # with matplotlib

    _check_panels(look.get("panels", []), curves.PANELS)
    methods, labels, mix = look.pop("methods", None), look.pop("labels", {}), look.pop("mix", False)
    unfinished = look.pop("unfinished", False)
    found = _runs_of(folder)
    dataset = _one_of("dataset", dataset, [run.settings["dataset"] for run in found])
    found = [run for run in found if run.settings["dataset"] == dataset]
    series, bounds = grouping.with_bounds(found, unfinished)
    split = _one_of("split", split, [one.level.cell for one in series])
    series = [one for one in series if one.level.cell == split]
    grouping.rename(series + bounds, [f"{old}={new}" for old, new in labels.items()])
    if methods:
        series, bounds = grouping.choose(series, bounds, [methods] if isinstance(methods, str) else methods)
    if not any(one.runs for one in series):
        raise InputError(f"no finished run of {dataset}, {split} in {folder}: unfinished=True draws those that are not")
    notes = [comparable.convention(series, mix), *comparable.mixtures(series + bounds)]
    figure, axes, more = curves.comparison(series, bounds, **look)
    curves.lay_out(figure, axes, f"{dataset}, {series[0].level.title}", [*more, *notes])
    curves.plt.close(figure)  # it is the caller's: pyplot neither shows nor keeps it
    return figure


def _check_panels(panels, known):
    """Raise InputError unless it is a list of panels that there are."""
    if not isinstance(panels, list | tuple):
        raise InputError(f"panels: {panels!r} is no list of {', '.join(known)}")
    for panel in panels:
        if panel not in known:
            raise InputError(f"panels: {panel!r} is none of {', '.join(known)}")


def _runs_of(folder):
    return records.load_runs(folder_of(folder))[0]


def _one_of(what, wanted, there):
    """Return `wanted`, or what is there if that is one. Raises InputError."""
    there = list(dict.fromkeys(there))
    if not there:
        raise InputError("there are no runs")
    if wanted is None and len(there) == 1:
        return there[0]
    if str(wanted) in there:
        return str(wanted)
    if wanted is None:
        raise InputError(f"{what}: there are several, give one of {', '.join(there)}")
    raise InputError(
        f"{what} {wanted!r}: there is none{did_you_mean(str(wanted), there)}; there are {', '.join(there)}"
    )
