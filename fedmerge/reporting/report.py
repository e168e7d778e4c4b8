"""A report of the runs in a folder: one HTML page that needs no network, with tables and figures to be clicked through.

What it shows is what plotting.py and `python -m fedmerge runs` show, by the same code. Needs no torch.
"""

import datetime
import json
import math
import re
import time
import zlib
from pathlib import Path

import pandas as pd

from fedmerge.errors import InputError
from fedmerge.reporting import comparable, run_list, run_status, tables
from fedmerge.reporting import series as grouping
from fedmerge.reporting.curves import COLOURS, LINES, MARKERS, over_seeds
from fedmerge.reporting.run_tables import runs_of
from fedmerge.reporting.runs import CURVES, load_runs

PAGE = Path(__file__).parent / "report_page"  # page.html, page.css, page.js
AXES = ["epoch", "up", "down", "both", "seconds"]
DASHES = ["solid", "dash", "dashdot", "dot", "longdash", "longdashdot"]  # as curves.LINES
SYMBOLS = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star", "triangle-left"]
SYMBOLS += ["triangle-right"]  # as curves.MARKERS
MOST = 500  # clients, and classes, of a split that are drawn
POINTS = 300  # of a curve


def content_of(folder, experiments=None, extra=()):
    """Return all that a report of the runs in `folder` shows, a dict of what JSON has.

    experiments: a list such as experiments.txt, whose lines are looked up, too; extra: flags, as words, that each of
    them is given besides. Raises InputError if there is no such folder, or it cannot be read.
    """
    if not experiments or Path(folder).exists():  # a grid that begins has none yet
        folder = run_list.folder_of(folder)
    runs, foreign = load_runs(folder)
    source, titles, splits, described = runs_of(folder), titles_of(runs), {}, []
    for run in runs:
        described.append(of_run(run, source.record(run_list.name_of(run)), titles, splits))
    names = {id(run): number for number, run in enumerate(runs)}
    methods, notes = [], []
    for dataset in sorted({run.settings["dataset"] for run in runs}):
        found = grouping.group_series([run for run in runs if run.settings["dataset"] == dataset], unfinished=True)
        reference = grouping.pick_reference(found)
        notes += [f"{dataset}: {sentence}" for sentence in comparable.mixtures(found)]
        notes += [f"{dataset}: compared with {reference.words()}"] if reference.of else []
        methods += [of_series(dataset, series, reference, titles, names) for series in found]
    return {
        "folder": str(folder),
        "made": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "runs": described,
        "methods": methods,
        "looks": [look_of(place) for place in range(len(COLOURS) * len(LINES))],
        "splits": splits,
        "lines": lines_of(experiments, extra, {row["run"]: row for row in described}) if experiments else [],
        "notes": [*notes, *(f"{path}: left out: {fault}" for path, fault in foreign.items())],
    }


def titles_of(runs):
    """Return {(dataset, Level): what the page calls it}: its title, with its short name where several have the same."""
    levels = dict.fromkeys((run.settings["dataset"], run.level) for run in runs)
    titles = [(dataset, level.title) for dataset, level in levels]
    several = {title for title in titles if titles.count(title) > 1}
    return {
        (dataset, level): level.title + f" ({level.file})" * ((dataset, level.title) in several)
        for dataset, level in levels
    }


def of_run(run, record, titles, splits):
    """Return what is told of one Run by itself; its split goes to `splits`, which several share."""
    rounds, left = run.rounds, run_list.to_go(run)
    up, down = rounds["bytes_up"].sum() / 1e6, rounds["bytes_down"].sum() / 1e6
    split = plain(record.get("partition"))
    key, title = None, titles[run.settings["dataset"], run.level]
    if run_list.counted(split):
        counts = [row[:MOST] for row in split["histograms"][:MOST]]
        sizes = {"clients": len(split["histograms"]), "classes": len(split["histograms"][0])}
        key = f"{zlib.crc32(json.dumps([run.settings['dataset'], title, sizes, counts]).encode()):08x}"
        splits[key] = {"title": f"{run.settings['dataset']}, {title}", "counts": counts, **sizes}
    return {
        "run": run_list.name_of(run),
        "state": run.state,
        "why": record.get("failed") or "",
        "dataset": run.settings["dataset"],
        "split": title,
        "central": run.settings["algorithm"] == "centralised",
        "seed": run.settings["seed"],
        "round": len(rounds),
        "rounds": run.settings["n_epochs"],
        "accuracy": figure(100 * run_list.last(rounds["test_accs"])),
        "up": figure(up),
        "both": figure(up + down),
        "seconds": figure(rounds["train_seconds"].sum()),
        "left": figure(left) if run.state == "running" else None,
        "settings": {name: str(value) for name, value in run_list.settings_in(record).items() if value is not None},
        "figures": {name: value for name, value in plain(record.get("final")).items() if run_list.is_figure(value)},
        "machine": {name: str(value) for name, value in plain(record.get("environment")).items()},
        **traffic_of(record),
        "histogram": key,
    }


def plain(value):
    return value if isinstance(value, dict) else {}


def figure(value):
    """Return a number with five digits, None for what is not known."""
    return None if value is None or math.isnan(value) else float(f"{value:.5g}")


def traffic_of(record):
    """Return `traffic`, [client, MB up, MB down] of each client that ever took part, the busiest MOST of them, and
    `took_part`, how many there are."""
    rows = record.get("traffic") if isinstance(record.get("traffic"), list) else []
    keys = ("client", "bytes_up", "bytes_down")
    good = [row for row in rows if isinstance(row, dict) and all(run_list.is_figure(row.get(key)) for key in keys)]
    busiest = sorted(good, key=lambda row: row["bytes_up"] + row["bytes_down"], reverse=True)[:MOST]
    shown = [
        [row["client"], figure(row["bytes_up"] / 1e6), figure(row["bytes_down"] / 1e6)]
        for row in sorted(busiest, key=lambda row: row["client"])
    ]
    return {"traffic": shown, "took_part": len(good)}


def of_series(dataset, series, reference, titles, names):
    """Return what is told of runs that differ only in their seed; names: id of a Run -> its number."""
    settings = series.members[0].settings
    central = settings["algorithm"] == "centralised"
    row = tables.summary_row(dataset, series, reference=reference.of.get(series.level))
    return {
        "label": series.label,
        "legend": series.legend,
        "dataset": dataset,
        "split": titles[dataset, series.level],
        "central": central,
        "shared": None if central else settings["shared_init"],
        "runs": [names[id(run)] for run in series.members],
        "row": {name: row[name] for name in COLUMNS},
        "style": series.style,
        **curves_of(series),
    }


COLUMNS = ("rounds", "seeds", "test acc. %, last round", "difference to reference, points", "val. acc. %, last round")
COLUMNS += ("MB up/round", "MB down/round", "less up", "less in all", "s/round")


def look_of(place):
    """Return the colour, dash and marker of the line number `place`, as curves.style has them."""
    dash = DASHES[place // len(COLOURS) % len(LINES)]
    return {"colour": COLOURS[place % len(COLOURS)], "dash": dash, "symbol": SYMBOLS[place % len(MARKERS)]}


def curves_of(series):
    """Return `x` {axis: numbers} of a Series, and `lines` {column: {"at", "value", and of several runs "low", "high"}}:
    `at` are places in the numbers of an axis. Of more than POINTS there are every second, third, ... and the last.
    """
    frames = {column: over_seeds(series.runs, column) for column in CURVES} if series.runs else {}
    frames = {column: thinned(frame) for column, frame in frames.items() if len(frame)}
    if not frames:
        return {"x": {name: [] for name in AXES}, "lines": {}}
    whole = pd.concat(frames.values()).groupby(level=0).first()  # of each round that any of them has
    whole["epoch"], lines = whole.index, {}
    for column, frame in frames.items():
        bands = ["low", "high"] if len(series.runs) > 1 else []
        lines[column] = {name: [figure(value) for value in frame[name]] for name in ("value", *bands)}
        lines[column]["at"] = whole.index.get_indexer(frame.index).tolist()
    return {"x": {name: [figure(value) for value in whole[name]] for name in AXES}, "lines": lines}


def thinned(frame):
    """Return at most POINTS rows of a frame, or one more: evenly, with the last."""
    every = -(-len(frame) // POINTS)
    kept = frame.iloc[::every]
    return kept if len(frame) % every == 1 or every == 1 else pd.concat([kept, frame.iloc[-1:]])


def lines_of(experiments, extra, runs):
    """Return what has become of each line of a list of experiments; runs: name -> what is told of it.

    A run's end is expected from its rounds so far.
    """
    found = []
    for number, words in enumerate(run_status.lines_of(experiments), 1):
        state, name = run_status.state_of([*words, *extra])
        left = (runs.get(name) or {}).get("left")
        end = None if left is None else round(time.time() + left)  # seconds since 1970
        found.append({"number": number, "flags": " ".join(words), "state": state, "run": name, "end": end})
    return found


def page_of(content, again=None):
    """Return the HTML of a report; content: as content_of returns it; again: seconds after which a browser reads the
    file once more, None for never. Raises InputError without plotly.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise InputError("a report needs the package plotly: pip install plotly") from None
    text = json.dumps({**content, "again": again}, allow_nan=False, ensure_ascii=True)
    text = text.replace("<", "\\u003c")  # nothing in it ends the script that holds it
    parts = {"style": read("page.css"), "script": read("page.js"), "plotly": get_plotlyjs(), "content": text}
    return re.sub(r"/\*(\w+)\*/", lambda mark: parts[mark[1]], read("page.html"))


def read(name):
    return (PAGE / name).read_text(encoding="utf-8")
