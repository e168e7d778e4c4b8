"""Whether there is room for what a run will hold: the updates of a round, and what clients keep between rounds.

A model of state for each of many clients adds up, and fills the memory only as new clients come.
"""

import os
import shutil
import sys
from pathlib import Path

import memory
import rounds
from utils import InputError

WORTH_SAYING = 2**28  # bytes
FILES = 3  # checkpoints that are on the disk while one is written: it, the newest, and the one before


def check_cohort(args, n, dim, who):
    """Raise InputError if n updates [dim], which `who` needs at once, take more than --max_cohort_memory."""
    size = n * dim * 4 / 2**30
    if size > args.max_cohort_memory:
        raise InputError(
            f"{who} needs {n} updates of a round at once, {size:.2f} GiB: raise --max_cohort_memory "
            f"{args.max_cohort_memory:g}, or lower --participation"
        )


def numbers_kept(exp):
    """Return {kind: how many float32 numbers a client keeps of it between rounds, None where that is not known}."""
    stateful, layout = (exp.algorithm, exp.trainer.local), exp.model.layout
    kinds = {kind: keeps.kept_length(kind, layout) for keeps in stateful for kind in keeps.held()}
    return kinds | ({"copy of the model": layout.dim} if exp.downlink.mode == "individual" else {})


def numbers_held(exp):
    """Return {kind: how many numbers of it the client that holds the most of it holds now}."""
    kinds = {kind: of for keeps in (exp.algorithm, exp.trainer.local) for kind, of in keeps.held().items()}
    return {kind: max((tensor.numel() for tensor in of.values()), default=0) for kind, of in kinds.items()}


def check_room(exp):
    """Raise InputError if there is no room for what clients will keep; say on standard error if it will be much."""
    kinds = {kind: n for kind, n in numbers_kept(exp).items() if n}
    _check(exp, kinds)


def check_what_is_held(exp):
    """Do what `check_room` does by what clients hold after a round, where nothing said it beforehand."""
    if None in numbers_kept(exp).values():
        _check(exp, numbers_held(exp))


def _check(exp, kinds):
    args, each = exp.args, 4 * sum(kinds.values())
    holding = len(exp.parts) - len(exp.empty)
    clients = min(holding, args.n_epochs * rounds.cohort_size(holding, args.participation))
    need, on_disk = each * clients, FILES * each * clients
    said = (
        f"each client that takes part keeps {in_words(each)} between rounds ({', '.join(kinds)}), "
        f"{clients} of them {in_words(need)}"
    )
    free, source = memory.free(exp.device), "free"
    if args.max_state_memory is not None:
        free, source = args.max_state_memory * 2**30, "allowed by --max_state_memory"
    if need > free:
        raise InputError(f"{said}, and {in_words(free)} are {source}: fewer --n_clients, or a method without it")
    folder, free = _free_on_disk(args.checkpoint_dir)
    if on_disk > free:
        raise InputError(
            f"{said}, and checkpoints up to {in_words(on_disk)} on disk, where {folder} has {in_words(free)} free: "
            "another --checkpoint_dir"
        )
    if need > WORTH_SAYING and not args.quiet:
        print(f"{said}; up to {in_words(on_disk)} on disk while a checkpoint is written", file=sys.stderr)


def _free_on_disk(folder):
    """Return the folder, or the nearest parent of it that is there, and the bytes that are free in it."""
    folder = Path(os.path.abspath(folder))
    while not folder.exists():
        folder = folder.parent
    return folder, shutil.disk_usage(folder).free


def in_words(n_bytes):
    """Return so many bytes with their unit."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if n_bytes >= unit:
            return f"{n_bytes / unit:.1f} {name}"
    return f"{n_bytes / 2**10:.1f} KiB"
