"""The files that runs leave: written so that a kill, a full disk or a second process spoils none of them.

Nothing here imports torch at module level.
"""

import csv
import glob
import io
import json
import os
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import files
import utils
from utils import InputError, plain


class Elsewhere(InputError):
    """This very run is going on in another process."""


@contextmanager
def replacing(path, previous=None):
    """Open a file for bytes that becomes `path` when the body is through: old or new is there, whole, at any moment.

    previous: where the old one goes. Raises InputError where a link or anything else but a file would be replaced.
    """
    path = Path(path)
    files.check_writable(path, *([previous] if previous is not None else []))
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with files.create(beside) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(beside, path)
        _fsync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def remove_leftovers(path):
    """Delete what killed processes left half written beside `path`; for who has the path to himself."""
    path = Path(path)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        left.unlink(missing_ok=True)


def _fsync_folder(folder):
    """Make a rename in `folder` durable, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_atomic(path, data):
    """Write bytes or str to `path` so that a reader, or a kill, finds the old content or the new, never a half."""
    with replacing(path) as file:
        file.write(data if isinstance(data, bytes) else data.encode())


def write_json(path, value):
    """Write `value` as strict JSON (no NaN), atomically."""
    write_atomic(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def note_failure(path, error):
    """Write into the record of a run why it ended, if that can still be written."""
    with suppress(OSError, InputError):
        record = read_json(path)
        if record is not None and not record.get("finished"):
            said = (
                str(error) if isinstance(error, (FloatingPointError, OSError)) else f"{type(error).__name__}: {error}"
            )
            write_json(path, record | {"failed": said})


def read_json(path):
    """Return the parsed file, or None if there is none. Raises InputError if it is not JSON of an object."""
    try:
        text = files.read_text(path, files.JSON)
    except FileNotFoundError:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: is not a JSON object")
    return value


@contextmanager
def exclusively(path, run="", output=""):
    """Hold the lock file `path` while the body runs.

    Raises InputError if it is a link, or if another process holds it: Elsewhere, if that one is at the same run. The
    lock is the system's (flock): it ends with its process, however that ends. A file is left, which means nothing.
    run: the name of who holds it, which the file says. output: in words, what it is for, if not for the run itself.
    """
    from filelock import FileLock, Timeout

    files.check_writable(path)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=1)  # `is_held` may have it for a moment
    except Timeout:
        raise _held_by(path, run, output) from None
    try:
        if run:
            Path(path).write_text(run + "\n", encoding="utf-8")
        yield
    finally:
        lock.release()


def _held_by(path, run, output):
    """Return the InputError that says who holds the lock file, as far as that is known."""
    with open(path, encoding="utf-8", errors="replace") as file:
        holder = file.readline(300).strip()
    if not output or holder == run:
        return Elsewhere(f"this very run is going on in another process (it holds {path})")
    return InputError(f"{output}: {holder or 'another run'} is writing there (it holds {path})")


def is_held(path):
    """Tell whether a process holds the lock file `path`."""
    from filelock import FileLock, Timeout

    if not files.is_regular(path):
        return False
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    lock.release()
    return False


def csv_text(columns, rows, header=True):
    """Return the CSV of rows {column: value}; missing values are empty cells."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class MetricsCSV:
    """The CSV of a run, a row a round; a row that cannot be written whole is not there.

    rows: those of a run that goes on. Raises OSError if a row cannot be written, or the file was taken away.
    """

    def __init__(self, path, columns, rows=()):
        self.path, self.columns = Path(path), columns
        write_atomic(self.path, csv_text(columns, rows))
        self.file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)

    def write(self, row):
        """Append a row."""
        line, before = csv_text(self.columns, [row], header=False).encode(), os.fstat(self.file).st_size
        if not self.path.exists() or not os.path.samestat(os.lstat(self.path), os.fstat(self.file)):
            raise OSError(f"{self.path} was removed while the run wrote to it")
        try:
            written = os.write(self.file, line)
            if written < len(line):
                os.write(self.file, line[written:])  # says why
        except OSError:
            os.ftruncate(self.file, before)
            raise

    def __enter__(self):
        return self

    def __exit__(self, *error):
        os.close(self.file)


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
    """Return what a run's record calls its split: "iid", a concentration, or the name of one made by hand."""
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
    told = {"algorithm", "dataset", "dirichlet", "n_epochs", "seed"}
    acting = utils.acting(settings)
    named = [name for name, option in utils.all_options().items() if option.named and name in acting]
    columns = {f"settings.{name}": acting[name] for name in named if name not in told}
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


def rebuild_results(metrics_dir, path):
    """Put the row of every finished run under `metrics_dir` into the CSV of all runs; return how many.

    Rows of runs that are not there stay. Raises InputError for a CSV that is another's.
    """
    rows = []
    for file in sorted(Path(metrics_dir).glob("*.json")):
        try:
            record = read_json(file)
            row = result_row(record) if record.get("finished") else None
            if row and row["run"] != file.stem:
                raise ValueError("it is of a run of another name")
            csv_text(row, [row]).encode() if row else None  # whether it can be written
        except (InputError, KeyError, TypeError, AttributeError, ValueError) as error:
            print(f"left out: {file} is not the record of a run ({error!r})", file=sys.stderr)
        else:
            rows += [row] if row else []
    add_results(path, rows)
    return len(rows)
