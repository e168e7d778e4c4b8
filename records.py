"""The files that runs leave: written so that a kill, a full disk or a second process spoils none of them.

Nothing here imports torch at module level.
"""

import csv
import io
import json
import os
import re
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path

from utils import InputError

HERE = Path(__file__).resolve().parent


def write_atomic(path, data):
    """Write bytes or str to `path` so that a reader, or a kill, finds the old content or the new, never a half."""
    path = Path(os.path.realpath(path))  # a symbolic link stays one
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(data if isinstance(data, bytes) else data.encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path, value):
    """Write `value` as strict JSON (no NaN), atomically."""
    write_atomic(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path):
    """Return the parsed file, or None if there is none. Raises InputError if it is not JSON of an object."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: is not a JSON object")
    return value


@contextmanager
def exclusively(path):
    """Hold the lock file `path` while the body runs. Raises InputError if another process holds it."""
    from filelock import FileLock, Timeout

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)  # ends with its process, however that ends
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(f"this very run is going on in another process (it holds {path})") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def metrics_csv(path, columns):
    """Open the CSV of a run; yields write({column: value}), which flushes every row. Missing values are empty cells."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()

        def write(row):
            writer.writerow(row)
            file.flush()

        yield write


def read_results(path):
    """Return the rows of the CSV of all runs, [] if there is none. Raises InputError for a file that is another's."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), reader.fieldnames or ["run"]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as the CSV of results ({error})") from None
    if "run" not in columns or any(None in row for row in rows):
        raise InputError(f"{path}: is not a CSV of results: it has no column 'run', or rows longer than its header")
    return rows


def add_result(path, row):
    """Put {column: value} into the CSV of all runs, replacing an earlier row of the same `run`.

    The file is rewritten beside itself and renamed, under a lock, so that array jobs may finish at the same time.
    """
    from filelock import FileLock

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        rows = [earlier for earlier in read_results(path) if earlier["run"] != row["run"]]
        columns = list(row) + [c for r in rows[:1] for c in r if c not in row]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="")
        writer.writeheader()
        writer.writerows([*rows, row])
        write_atomic(path, text.getvalue())


def environment(device):
    """Return {name: text} of what a run was made with: versions, device, commit (None outside a git checkout)."""
    import platform
    from importlib.metadata import version

    import torch

    packages = ("torchvision", "numpy", "pandas", "scikit-learn")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{package: version(package) for package in packages},
        "device": str(device),
        "device_name": name,
        "threads": torch.get_num_threads(),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def _processor():
    import platform

    with suppress(OSError):  # Linux; elsewhere platform knows
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def _git(*words):
    try:
        done = subprocess.run(["git", "-C", HERE, *words], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
