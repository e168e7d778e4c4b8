"""Whether there is room for what a run will hold: the updates of a round, and what clients keep between rounds.

A model of state for each of many clients adds up, and fills the memory only as new clients come.
"""

import os
import shutil
import sys
from pathlib import Path

from fedmerge import memory
from fedmerge.checkpoint.store import Checkpoints
from fedmerge.errors import InputError
from fedmerge.memory import in_words

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
    """Return {kind: how many float32 numbers a client keeps of it between rounds, None where that is not known}.

    Where clients' copies of the model are looked after, those of one version are one.
    """
    stateful, layout = (exp.algorithm, exp.trainer.local), exp.model.layout
    kinds = {kind: keeps.kept_length(kind, layout) for keeps in stateful for kind in keeps.held()}
    copies = exp.downlink.mode == "individual" or exp.downlink.real
    return kinds | ({"copy of the model": layout.dim} if copies else {})


def held_now(exp):
    """Return {kind: {client: bytes}} of what clients hold."""
    kinds = {kind: of for keeps in (exp.algorithm, exp.trainer.local) for kind, of in keeps.held().items()}
    return {kind: {number: tensor.nbytes for number, tensor in of.items()} for kind, of in kinds.items()}


def check_room(exp):
    """Raise InputError if there is no room for what clients will keep; say on standard error if it will be much."""
    _check(exp, {kind: 4 * n for kind, n in numbers_kept(exp).items() if n})


def check_what_is_held(exp):
    """Do what `check_room` does by what clients hold after a round, where nothing said it beforehand."""
    if None in numbers_kept(exp).values():
        held = held_now(exp)
        most = {kind: max(of.values(), default=0) for kind, of in held.items()}
        _check(exp, most, already=sum(sum(of.values()) for of in held.values()))


def _check(exp, kinds, already=0):
    """kinds: the bytes of each that a client keeps; already: those that clients hold, which are not free any more."""
    args, each = exp.args, sum(kinds.values())
    clients = min(len(exp.parts) - len(exp.empty), args.n_epochs * exp.cohort_size)
    need, on_disk = each * clients, FILES * each * clients
    said = (
        f"each client that takes part keeps {in_words(each)} between rounds ({', '.join(kinds)}), "
        f"{clients} of them {in_words(need)}"
    )
    free, source = memory.free(exp.device) + already, "free"
    if args.max_state_memory is not None:
        free, source = args.max_state_memory * 2**30, "allowed by --max_state_memory"
    if need > free:
        raise InputError(f"{said}, and {in_words(free)} are {source}: fewer --n_clients, or a method without it")
    folder, free = _free_on_disk(Checkpoints(args.checkpoint_dir, exp.name))
    if on_disk > free:
        raise InputError(
            f"{said}, and checkpoints up to {in_words(on_disk)} on disk, where {folder} has {in_words(free)} for them: "
            "another --checkpoint_dir"
        )
    if need > WORTH_SAYING and not args.quiet:
        print(f"{said}; up to {in_words(on_disk)} on disk while a checkpoint is written", file=sys.stderr)


def _free_on_disk(checkpoints):
    """Return the folder of Checkpoints, or the nearest parent of it that is there, and the bytes there are for them:
    those that are free, and those that the run's own take."""
    own = sum(path.stat().st_size for path in (checkpoints.newest, checkpoints.previous) if path.exists())
    folder = Path(os.path.abspath(checkpoints.newest.parent))
    while not folder.exists():
        folder = folder.parent
    return folder, shutil.disk_usage(folder).free + own
