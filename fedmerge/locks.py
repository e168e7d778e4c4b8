"""Lock files, which the system holds for a process: they end with it, however it ends."""

from contextlib import contextmanager
from pathlib import Path

from fedmerge import files
from fedmerge.errors import InputError


class Elsewhere(InputError):
    """This very run is going on in another process."""


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
