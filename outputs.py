"""Where a run leaves its files: it is alone there, writes over nothing of others, and is able to write at its end."""

import contextlib
import glob
import os
from pathlib import Path

from filelock import FileLock, Timeout

import files
import personal
import records
import utils
from utils import InputError

ELSEWHERE = 73  # exit status of a run that another process is at already


class Elsewhere(InputError):
    """This very run is going on in another process."""


@contextlib.contextmanager
def alone(*locks):
    """Hold the lock files, some of which may be one and the same. Raises Elsewhere if another process holds one."""
    with contextlib.ExitStack() as held:
        for lock in dict.fromkeys(map(os.path.realpath, locks)):
            try:
                held.enter_context(records.exclusively(lock))
            except InputError as error:
                raise Elsewhere(str(error)) from None
        yield


def check_links(args, name, kept):
    """Raise InputError if a file that the run `name` will write is a link, or no file. kept: its Checkpoints."""
    metrics, figures = Path(args.metrics_dir), Path(args.plots_dir).glob(f"{glob.escape(name)}_*.png")
    of_run = (metrics / f"{name}.json", metrics / f"{name}_metrics.csv", metrics / f".{name}.lock")
    files.check_writable(*of_run, *figures, kept.newest, kept.previous, kept.lock, f"{args.results_file}.lock")
    if args.save_clients:
        personal.check_links(args.save_clients)


def check_outputs(args, earlier=None):
    """Raise InputError if the run would write over what is not its own; earlier: settings of the run that goes on."""
    earlier = earlier or {}
    weights, clients = args.save_weights, args.save_clients
    if args.overwrite:
        return
    if weights and weights != earlier.get("save_weights") and Path(weights).exists():
        raise InputError(f"--save_weights {weights}: is there already; another name, or --overwrite")
    if clients and clients != earlier.get("save_clients"):
        personal.check_folder(clients)


class Enough(Exception):
    """It has been seen that a file can be written."""


def check_last_step(args, name):
    """Raise InputError if what a run needs at its very end is not to be had: hours later is too late."""
    written = [args.results_file, Path(args.plots_dir) / f"{name}_accuracy_curves.png", args.save_weights]
    for path in filter(None, written):
        try:
            with contextlib.suppress(Enough), records.replacing(path):
                raise Enough
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be written ({utils.reason(error)})") from None
    try:
        with contextlib.suppress(Timeout), FileLock(f"{args.results_file}.lock", timeout=1):
            pass
    except OSError as error:
        raise InputError(f"{args.results_file}: its lock cannot be had ({utils.reason(error)})") from None
    try:
        import plotting  # noqa: F401
    except OSError as error:  # matplotlib wants a folder for what it knows of fonts
        raise InputError(f"figures cannot be drawn: {utils.reason(error)}") from None
