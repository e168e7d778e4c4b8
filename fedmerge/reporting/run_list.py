"""The runs of a folder, for the terminal: what ran, what is running and how long it has to go; one of them in full; in
what two differ; and their removal. Needs no torch.
"""

import math
import os
from pathlib import Path

import pandas as pd

from fedmerge import locks
from fedmerge.config.options import all_options
from fedmerge.config.run_name import acting
from fedmerge.errors import InputError
from fedmerge.reporting import results_csv
from fedmerge.reporting.durations import duration
from fedmerge.reporting.run_tables import RunFiles, runs_of
from fedmerge.reporting.runs import load_runs, printable, read_run

SHADES = " .:-=+*#%@"  # of the share of a class's samples that a client holds, in the drawing of a split
WIDEST = 100  # clients, and classes, of such a drawing
LEFT = {  # the folder's setting -> how the names of a run's files there end
    "plots_dir": ("_accuracy_curves.png", "_loss_curves.png", "_partition.png"),
    "checkpoint_dir": (".pt", ".previous.pt"),
}


def folder_of(folder):
    """Return the folder with the records of runs: this one, or the `metrics` in it. Raises InputError if it is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder")
    inside = folder / "metrics"
    holds = any(folder.glob("*_metrics.csv")) or any(folder.glob("*.gz"))
    return inside if inside.is_dir() and not holds else folder


def table(folder):
    """Return a DataFrame of the Runs of a folder, a row each, by their names, and {path: fault} of what is none."""
    runs, foreign = load_runs(folder_of(folder))
    rows = [
        {
            "run": name_of(run),
            "state": run.state,
            "round": f"{len(run.rounds)}/{run.settings['n_epochs']}",
            "accuracy": last(run.rounds["test_accs"]),
            "mb_up": run.rounds["bytes_up"].sum() / 1e6,
            "mb": (run.rounds["bytes_up"] + run.rounds["bytes_down"]).sum() / 1e6,
            "seconds": run.rounds["train_seconds"].sum(),
            "to_go": to_go(run),
        }
        for run in runs
    ]
    columns = ["run", "state", "round", "accuracy", "mb_up", "mb", "seconds", "to_go"]
    return pd.DataFrame(rows, columns=columns), foreign


def name_of(run):
    return run.path.name.removesuffix(".json")


def last(column):
    """Return the last number of a column, NaN if there is none."""
    known = column.dropna()
    return float(known.iloc[-1]) if len(known) else math.nan


def to_go(run):
    """Return the seconds that a run has to go, by its rounds so far, with their evaluations: 0 if it is finished."""
    left, done = run.settings["n_epochs"] - len(run.rounds), len(run.rounds)
    if not left or not done:
        return math.nan if left else 0.0
    return left * (run.rounds["train_seconds"].sum() + run.rounds["eval_seconds"].sum()) / done


def print_runs(folder, say=print):
    """Print a line a run, and what is no record of one."""
    (found, foreign), say = table(folder), plainly(say)
    for number, row in enumerate(found.to_dict("records"), 1):
        accuracy = "      " if math.isnan(row["accuracy"]) else f"{100 * row['accuracy']:5.2f}%"
        left = f"{duration(row['to_go'])} to go" if row["state"] == "running" else duration(row["seconds"])
        size = f"{row['mb_up']:10.2f} MB up {row['mb']:10.2f} in all"
        say(f"{number:>4}  {row['state']:<8} {row['round']:>9}  {accuracy} {size}  {left:>14}  {row['run']}")
    for path, fault in foreign.items():
        say(f"left out: {printable(path)}: {fault}")
    counts = found["state"].value_counts()
    said = ", ".join(f"{counts[state]} {state}" for state in counts.index)
    say(said or f"no runs in {folder_of(folder)}")


def find(folder, wanted, part=True):
    """Return (source, name) of the run that `wanted` names: its number in the list, its name, or, with `part`, a part
    of this.

    Raises InputError if there is none, or several.
    """
    path = Path(wanted)
    if path.suffix == ".json" and path.is_file():
        folder, wanted = path.parent, path.stem
    source = runs_of(folder_of(folder))
    if wanted.isdecimal() and wanted not in source.names:
        good = table(folder)[0]["run"].tolist()  # as they are numbered
        if not 1 <= int(wanted) <= len(good):
            raise InputError(f"there is no run {wanted}: {source.folder} has {len(good)}")
        return source, good[int(wanted) - 1]
    names = [name for name in source.names if name == wanted] or [
        name for name in source.names if part and wanted and wanted in name
    ]
    if not names:
        raise InputError(f"there is no run {printable(wanted)} in {source.folder}")
    if len(names) > 1:
        some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise InputError(f"{printable(wanted)} is in the name of {len(names)} runs: {some}")
    return source, names[0]


def record_of(source, name):
    """Return the record of a run, checked as those that are drawn. Raises InputError if it is none."""
    read_run(source, name)
    record = source.record(name)
    if record.get("run") != name:
        raise InputError(f"{source.path(name)}: is no record of a run of this name")
    return record


def settings_in(record):
    """Return {name: value} of the settings in a record that have an effect on its result."""
    settings = record["settings"]
    named = {name for name, option in all_options().items() if option.named}
    return {name: value for name, value in acting(settings).items() if name in named}


def show(folder, wanted, say=print):
    """Print all that is known of a run: settings, figures, where it ran, its split."""
    source, name = find(folder, wanted)
    record, say = record_of(source, name), plainly(say)
    state = "finished" if record.get("finished") else record.get("failed") or "not finished"
    say(f"{name}: {state}\n")
    sections = {"settings": settings_in(record), "final": record.get("final"), "environment": record.get("environment")}
    for title, values in sections.items():
        say(f"{title}")
        for key, value in (values if isinstance(values, dict) else {}).items():
            say(f"  {key:<24} {printable(f'{value:.6g}' if isinstance(value, float) else value)}")
        say("")
    split = record.get("partition")
    for line in drawn(split if isinstance(split, dict) else {}):
        say(line)


def drawn(split):
    """Return lines that draw a split: a column a client, a row a class, the darker the more of the class it holds."""
    if not counted(split):
        return ["the record does not tell its split"]
    counts = split["histograms"]
    skew = split.get("skew") if isinstance(split.get("skew"), dict) else {}
    lines = [f"split {printable(split.get('title'))}: {len(counts)} clients, {sum(map(sum, counts))} samples"]
    lines += [f"  {key:<24} {value:.3g}" for key, value in skew.items() if isinstance(value, float)]
    shown = list(zip(*counts[:WIDEST], strict=True))[:WIDEST]
    for label, row in enumerate(shown):
        most = max(row)
        shades = "".join(SHADES[math.ceil((len(SHADES) - 1) * n / most)] if most else " " for n in row)
        lines.append(f"  class {label:>3} |{shades}|")
    if len(counts) > WIDEST or len(counts[0]) > WIDEST:
        lines.append(f"  (the first {WIDEST} of {len(counts)} clients and {len(counts[0])} classes)")
    return lines


def counted(split):
    """Tell whether a record's split has how many samples of each class each client holds."""
    counts = split.get("histograms")
    plain = isinstance(counts, list) and all(
        isinstance(row, list) and all(type(n) is int and n >= 0 for n in row) for row in counts
    )
    return bool(plain and counts and len({len(row) for row in counts}) == 1)


def diff(folder, one, other, say=print):
    """Print the settings in which two runs differ, and their figures beside each other."""
    (first, a), (second, b) = find(folder, one), find(folder, other)
    records, say = (record_of(first, a), record_of(second, b)), plainly(say)
    mine, others = map(settings_in, records)
    differing = [name for name in dict.fromkeys([*mine, *others]) if mine.get(name) != others.get(name)]
    say(f"a: {a}\nb: {b}\n")
    for name in differing:
        left, right = (printable(s[name]) if name in s else "-" for s in (mine, others))
        say(f"  {name:<24} {left:>20} {right:>20}")
    if not differing:
        say("  the same settings")
    left, right = (record.get("final") if isinstance(record.get("final"), dict) else {} for record in records)
    say("")
    for name in left:
        if is_figure(left[name]) and is_figure(right.get(name)):
            say(f"  {name:<24} {left[name]:>20.6g} {right[name]:>20.6g} {right[name] - left[name]:>+14.4g}")


def is_figure(value):
    return isinstance(value, int | float) and abs(value) < 1e300


def plainly(say):
    """Return `say`, for lines of which nothing steers a terminal."""
    return lambda text: say("\n".join(map(printable, text.split("\n"))))


def left_by(source, name):
    """Return the paths of what a run left, as far as they are there, and the CSV of results, None if it is not known.

    Figures, checkpoints and results are looked for where the record says only if it lies where it was written: a copy
    of it has none of its own. Raises InputError if the runs are in tables, or a process is at this one.
    """
    if not isinstance(source, RunFiles):
        raise InputError(f"{source.folder}: its runs are in tables, from which none is removed")
    settings = record_of(source, name)["settings"]
    if source.is_running(name):
        raise InputError(f"{name} is running")
    found, results = [source.folder / f"{name}.json", source.folder / f"{name}_metrics.csv"], None
    home = settings.get("metrics_dir")
    if isinstance(home, str) and os.path.realpath(home) == os.path.realpath(source.folder):
        for setting, endings in LEFT.items():
            place = settings.get(setting)
            if isinstance(place, str):
                found += [Path(place) / f"{name}{ending}" for ending in endings]
        results = settings.get("results_file") if isinstance(settings.get("results_file"), str) else None
    return [path for path in found if path.is_file()], results


def remove(folder, wanted, ask=None, say=print):
    """Remove what runs left, and their rows in the CSV of results, if `ask`, a function of a question, says so.

    wanted: names, as `find` has them; where nobody is asked, no part of one. Returns how many were removed.
    """
    found = [find(folder, one, part=ask is not None) for one in wanted]
    chosen = {(os.path.realpath(source.folder), name): (source, *left_by(source, name)) for source, name in found}
    tell = plainly(say)
    for (_, name), (_, paths, results) in chosen.items():
        tell(f"{name}: {len(paths)} files" + (f", and its row in {results}" if results else ""))
        for path in paths:
            tell(f"  {path}")
    if ask is not None and not ask(f"remove {'them' if len(chosen) > 1 else 'it'}? [y/N] "):
        return 0
    for (_, name), (source, paths, results) in chosen.items():
        with locks.exclusively(source.folder / f".{name}.lock", name):
            if results:
                results_csv.drop_results(results, {name})
            for path in paths:
                path.unlink(missing_ok=True)
    return len(chosen)
