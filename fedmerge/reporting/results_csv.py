"""The CSV of all finished runs, a row each.

Nothing here imports torch at module level.
"""

import csv
import io
import sys
from pathlib import Path

from fedmerge import files
from fedmerge.config.options import all_options
from fedmerge.config.run_name import acting
from fedmerge.config.split_files import plain
from fedmerge.errors import InputError
from fedmerge.reporting.run_tables import runs_of
from fedmerge.saving import csv_text, remove_leftovers, write_atomic


def read_results(path):
    """Return the rows of the CSV of all runs, [] if there is none. Raises InputError for a file that is another's."""
    try:
        reader = csv.DictReader(io.StringIO(files.read_text(path, files.CSV), newline=""))
    except FileNotFoundError:
        return []
    try:
        rows, columns = list(reader), reader.fieldnames or ["run"]
    except csv.Error as error:
        raise InputError(f"{path}: cannot be read as the CSV of results ({error})") from None
    if "run" not in columns or any(None in row for row in rows):
        raise InputError(f"{path}: is not a CSV of results: it has no column 'run', or rows longer than its header")
    return rows


def split_name(record):
    """Return what a run's record calls its split: "iid", a concentration, "labels-2", or one's name made by hand."""
    level = record["settings"]["dirichlet"]
    return plain(record["partition"]["name"]) if level is None else level


def result_row(record):
    """Return the row of results.csv of a finished run's record: the columns of the published system first, then ours,
    then `settings.<name>` for every setting that has an effect on the result.

    Raises KeyError, TypeError or AttributeError if that is no record of a finished run.
    """
    settings, final = record["settings"], record["final"]
    first = {
        "method": settings["algorithm"],
        "dataset": settings["dataset"],
        "Dirichlet": split_name(record),
        "rounds": settings["n_epochs"],
    }
    figures = {name: value for name, value in final.items() if name != "train_seconds"}
    told = {"algorithm", "dataset", "dirichlet", "partition", "n_epochs", "seed"}
    effective = acting(settings)
    named = [name for name, option in all_options().items() if option.named and name in effective]
    columns = {f"settings.{name}": effective[name] for name in named if name not in told}
    return {**first, **figures, "seed": settings["seed"], "run": record["run"], **columns}


def add_results(path, rows):
    """Put rows {column: value} into the CSV of all runs, replacing earlier ones of the same `run`.

    The file is rewritten beside itself and renamed, under a lock, so that array jobs may finish at the same time.
    """
    from filelock import FileLock

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = {row["run"] for row in rows}
    files.check_writable(path, f"{path}.lock")
    with FileLock(f"{path}.lock"):
        remove_leftovers(path)
        earlier = [row for row in read_results(path) if row["run"] not in names]
        columns = list(dict.fromkeys(column for row in [*rows, *earlier] for column in row))
        write_atomic(path, csv_text(columns, [*earlier, *rows]))


def drop_results(path, runs):
    """Take the rows of these runs, a set of names, out of the CSV of all runs, if there is one."""
    from filelock import FileLock

    if not Path(path).exists():
        return
    files.check_writable(path, f"{path}.lock")
    with FileLock(f"{path}.lock"):
        earlier = read_results(path)
        left = [row for row in earlier if row["run"] not in runs]
        if len(left) < len(earlier):
            write_atomic(path, csv_text(list(earlier[0]), left))


def rebuild_results(metrics_dir, path):
    """Put the row of every finished run under `metrics_dir`, in files or tables, into the CSV of all runs; return how
    many.

    Rows of runs that are not there stay. Raises InputError for a CSV that is another's, or tables that cannot be read.
    """
    source, rows = runs_of(metrics_dir), []
    for place, fault in source.faults.items():
        print(f"left out: {place} is not the record of a run ({fault})", file=sys.stderr)
    for name in source.names:
        try:
            record = source.record(name)
            row = result_row(record) if record.get("finished") else None
            if row and row["run"] != name:
                raise ValueError("it is of a run of another name")
            csv_text(row, [row]).encode() if row else None  # whether it can be written
        except (InputError, KeyError, TypeError, AttributeError, ValueError) as error:
            print(f"left out: {source.path(name)} is not the record of a run ({error!r})", file=sys.stderr)
        else:
            rows += [row] if row else []
    add_results(path, rows)
    return len(rows)
