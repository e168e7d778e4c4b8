"""Files written so that a kill, a full disk or a second process spoils none of them.

Nothing here imports torch.
"""

import csv
import glob
import io
import json
import math
import os
from contextlib import contextmanager, suppress
from pathlib import Path

from fedmerge import files
from fedmerge.errors import InputError, reason


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


def read_json(path):
    """Return the parsed file, or None if there is none. Raises InputError if it is not JSON of an object."""
    try:
        text = files.read_text(path, files.JSON)
    except FileNotFoundError:
        return None
    try:
        return json_object(text)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def json_object(text):
    """Return the dict of a text of strict JSON, in which all numbers are finite. Raises InputError."""

    def refuse(number):
        raise ValueError(f"{number} is no number of JSON")

    def finite(digits):
        return float(digits) if math.isfinite(float(digits)) else refuse(digits[:20])

    try:
        content = json.loads(text, parse_constant=refuse, parse_float=finite)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON ({reason(error)})") from None
    if not isinstance(content, dict):
        raise InputError("it is no JSON object")
    return content


def csv_text(columns, rows, header=True):
    """Return the CSV of rows {column: value}; missing values are empty cells."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
