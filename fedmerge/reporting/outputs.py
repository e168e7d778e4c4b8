"""Where a run leaves its files: it is alone there, writes over nothing of others, and is able to write at its end."""

import contextlib
import glob
import os
from pathlib import Path

from filelock import FileLock, Timeout

from fedmerge import files, locks, saving
from fedmerge.errors import InputError, reason
from fedmerge.simulation import personal_parts

ELSEWHERE = 73  # exit status of a run that another process is at already


@contextlib.contextmanager
def alone(*paths):
    """Hold the lock files, some of which may be one and the same. Raises locks.Elsewhere if another process does."""
    with contextlib.ExitStack() as stack:
        for lock in {Path(os.path.realpath(lock.parent)) / lock.name: lock for lock in paths}.values():
            stack.enter_context(locks.exclusively(lock))
        yield


def check_links(args, name, kept):
    """Raise InputError if a file that the run `name` will write is a link, or no file. kept: its Checkpoints."""
    metrics, figures = Path(args.metrics_dir), Path(args.plots_dir).glob(f"{glob.escape(name)}_*.png")
    of_run = (metrics / f"{name}.json", metrics / f"{name}_metrics.csv", metrics / f".{name}.lock")
    files.check_writable(*of_run, *figures, kept.newest, kept.previous, kept.lock, f"{args.results_file}.lock")
    if args.save_clients:
        personal_parts.check_links(args.save_clients)


def locks_of(args):
    """Return {the flag and its path, in words: lock file} of the outputs that other runs might share."""
    found = {}
    if args.save_clients:
        found[f"--save_clients {args.save_clients}"] = Path(args.save_clients) / personal_parts.LOCK
    if args.save_weights:
        path = Path(os.path.realpath(args.save_weights))
        found[f"--save_weights {args.save_weights}"] = path.with_name(f".{path.name}.lock")
    return found


@contextlib.contextmanager
def held(args, name, anew):
    """Keep the outputs of the run `name` to itself while the body runs.

    anew: whether it begins, and nothing may be there yet. Raises InputError if something is, or another run writes it.
    """
    if anew:
        check(args, name)
    with contextlib.ExitStack() as stack:
        for output, lock in locks_of(args).items():
            stack.enter_context(locks.exclusively(lock, name, output))
        if anew:
            check(args, name)  # what was written since then counts as well
        yield


def check(args, name, earlier=None, trained=False):
    """Raise InputError if the run `name` would write over what is not its own.

    earlier: settings of the run that goes on, if it does; trained: whether that is through with its rounds, and may
    have left something already.
    """
    if args.overwrite:
        return
    weights, clients = args.save_weights, args.save_clients
    own = trained and weights == earlier.get("save_weights")
    for file in (weights, f"{weights}.md") if weights and not own else ():
        if Path(file).exists():
            raise InputError(f"--save_weights {file}: is there already; another name, or --overwrite")
    if clients:
        personal_parts.check_folder(clients, None if earlier is None else name)


class Enough(Exception):
    """It has been seen that a file can be written."""


def check_last_step(args, name):
    """Raise InputError if what a run needs at its very end is not to be had: hours later is too late."""
    written = [args.results_file, Path(args.plots_dir) / f"{name}_accuracy_curves.png"]
    written += [args.save_weights, f"{args.save_weights}.md"] if args.save_weights else []
    for path in filter(None, written):
        try:
            with contextlib.suppress(Enough), saving.replacing(path):
                raise Enough
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be written ({reason(error)})") from None
    try:
        with contextlib.suppress(Timeout), FileLock(f"{args.results_file}.lock", timeout=1):
            pass
    except OSError as error:
        raise InputError(f"{args.results_file}: its lock cannot be had ({reason(error)})") from None
    try:
        from fedmerge.reporting import run_figures  # noqa: F401
    except OSError as error:  # matplotlib wants a folder for what it knows of fonts
        raise InputError(f"figures cannot be drawn: {reason(error)}") from None
