"""Runs as a finished program leaves them, made up: for the tests of figures and tables."""

import json

import pandas as pd

import plotting
from fedmerge import saving
from fedmerge.config.resolve import resolve
from fedmerge.config.run_name import run_name, settings_of
from fedmerge.reporting import runs


def write_run(folder, accuracies, seconds=2.0, record=(), validation=None, **settings):
    """Leave what a finished run leaves: 4 clients a round send 1 MB each and receive 3 MB each; return its name.

    record: what is otherwise in its JSON.
    """
    args = resolve({"n_epochs": len(accuracies), **settings})
    name = run_name(args)
    sends = args.algorithm != "centralised"
    rows = [
        {
            "epoch": i,
            **{"train_accs": accuracy, "val_accs": validated, "test_accs": accuracy},
            **{f"{part}_losses": 1 - accuracy for part in ("train", "val", "test")},
            **{"bytes_up": 4e6 * sends, "bytes_down": 12e6 * sends},
            **{"train_seconds": seconds, "eval_seconds": 1.0, "kept_share": 1.0, "clients": 4},
        }
        for i, (accuracy, validated) in enumerate(zip(accuracies, validation or accuracies, strict=True), start=1)
    ]
    folder.mkdir(exist_ok=True, parents=True)
    pd.DataFrame(rows).to_csv(folder / f"{name}_metrics.csv", index=False, lineterminator="\r\n")  # as fedalg.py
    content = {
        "run": name,
        "finished": True,
        "failed": None,
        "settings": settings_of(args),
        "final": {"f1": accuracies[-1] / 2},
        "environment": {"commit": "0123456789abcdef", "uncommitted_changes": False},
        "model": {"weights": 700_000, "buffers": 50_000},
        "data": {"crc32": "0bbb6c38"},
        "partition": {"histograms": [[3, 0], [1, 7]]},
    }
    saving.write_json(folder / f"{name}.json", content | dict(record))
    return name


def change(folder, name, **changes):
    """Replace entries of the record of a run; {name: value} goes into the dict that is there."""
    path = folder / f"{name}.json"
    content = json.loads(path.read_text())
    for key, value in changes.items():
        content[key] = content[key] | value if isinstance(value, dict) and isinstance(content.get(key), dict) else value
    path.write_text(json.dumps(content))


def loaded(folder, dataset="DIGITS"):
    return [run for run in runs.load_runs(folder)[0] if run.settings["dataset"] == dataset]


def compared(folder, out, *flags, dataset="DIGITS"):
    """Return {name: rows} of the tables that plotting.py writes, and the paths."""
    args = plotting.build_parser().parse_args(["--output_dir", str(out), *map(str, flags)])
    made, written = plotting.compare(loaded(folder, dataset), dataset, args)
    return {name: table.rows for name, table in made.items()}, written
