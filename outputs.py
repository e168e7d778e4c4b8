"""What a run leaves beside its record: no other run writes there meanwhile, and nothing of another is written over."""

import contextlib
import os
from pathlib import Path

import personal
import records
from utils import InputError


def locks_of(args):
    """Return {the flag and its path, in words: lock file} of the outputs that other runs might share."""
    locks = {}
    if args.save_clients:
        locks[f"--save_clients {args.save_clients}"] = Path(args.save_clients) / personal.LOCK
    if args.save_weights:
        path = Path(os.path.realpath(args.save_weights))
        locks[f"--save_weights {args.save_weights}"] = path.with_name(f".{path.name}.lock")
    return locks


@contextlib.contextmanager
def held(args, name, anew):
    """Keep the outputs of the run `name` to itself while the body runs.

    anew: whether it begins, and nothing may be there yet. Raises InputError if something is, or another run writes it.
    """
    if anew:
        check(args, name)
    with contextlib.ExitStack() as locks:
        for output, lock in locks_of(args).items():
            locks.enter_context(records.exclusively(lock, name, output))
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
    if weights and not own and Path(weights).exists():
        raise InputError(f"--save_weights {weights}: is there already; another name, or --overwrite")
    if clients:
        personal.check_folder(clients, None if earlier is None else name)
