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


def numbers_kept(server, clients):
    """Return {name: how many float32 numbers a client keeps of it between rounds, None where that is not known}.

    Where clients' copies of the model are looked after, those of one version are one.
    """
    kept = {name: keeps.kept_length(name, server.layout) for keeps in clients.stateful for name in keeps.of_clients()}
    copies = server.downlink.settings.mode == "individual" or server.downlink.settings.real
    return kept | ({"copy of the model": len(server.downlink.model)} if copies else {})


def kept_now(clients):
    """Return {name: {client: bytes}} of what clients keep."""
    return {name: {client: tensor.nbytes for client, tensor in of.items()} for name, of in clients.kept().items()}


def check_room(server, clients, run):
    """Raise InputError if there is no room for what clients will keep; say on standard error if it will be much.

    run: its name.
    """
    _check(server, run, {name: 4 * n for name, n in numbers_kept(server, clients).items() if n})


def check_what_is_kept(server, clients, run):
    """Do what `check_room` does by what clients keep after a round, where nothing said it beforehand."""
    if None in numbers_kept(server, clients).values():
        kept = kept_now(clients)
        most = {name: max(of.values(), default=0) for name, of in kept.items()}
        _check(server, run, most, already=sum(sum(of.values()) for of in kept.values()))


def _check(server, run, kinds, already=0):
    """kinds: the bytes of each that a client keeps; already: those that clients keep, which are not free any more."""
    settings, each = server.settings, sum(kinds.values())
    clients = min(len(server.sizes) - len(server.empty), settings.n_epochs * server.cohort_size)
    need, on_disk = each * clients, FILES * each * clients
    said = (
        f"each client that takes part keeps {in_words(each)} between rounds ({', '.join(kinds)}), "
        f"{clients} of them {in_words(need)}"
    )
    free, source = memory.free(server.theta.device) + already, "free"
    if settings.max_state_memory is not None:
        free, source = settings.max_state_memory * 2**30, "allowed by --max_state_memory"
    if need > free:
        raise InputError(f"{said}, and {in_words(free)} are {source}: fewer --n_clients, or a method without it")
    folder, free = _free_on_disk(Checkpoints(settings.checkpoint_dir, run))
    if on_disk > free:
        raise InputError(
            f"{said}, and checkpoints up to {in_words(on_disk)} on disk, where {folder} has {in_words(free)} for them: "
            "another --checkpoint_dir"
        )
    if need > WORTH_SAYING and not settings.quiet:
        print(f"{said}; up to {in_words(on_disk)} on disk while a checkpoint is written", file=sys.stderr)


def _free_on_disk(checkpoints):
    """Return the folder of Checkpoints, or the nearest parent of it that is there, and the bytes there are for them:
    those that are free, and those that the run's own take."""
    own = sum(path.stat().st_size for path in (checkpoints.newest, checkpoints.previous) if path.exists())
    folder = Path(os.path.abspath(checkpoints.newest.parent))
    while not folder.exists():
        folder = folder.parent
    return folder, shutil.disk_usage(folder).free + own
