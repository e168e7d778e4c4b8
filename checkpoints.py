"""What a run holds between two clients, on disk, so that it goes on where it was killed.

A checkpoint is a line that names the format, the SHA-256 of what follows, and what torch.save makes of tensors and
plain values. Randomness is keyed, so that no generator's state belongs into it.
"""

import contextlib
import hashlib
import math
import os
import signal
import sys
import time
from pathlib import Path

import torch

import checkpoint_state
import files
import partitions
import payload
import provenance
import records
import rounds
import tensors
import utils
from startup import SIGNALS, afterwards
from utils import InputError

MAGIC = b"fedalg checkpoint 3\n"

LONGEST = 600  # seconds without a checkpoint, as far as clients end in them
SHARE = 0.007  # of the time, for checkpoints; they grow with what clients keep, and shall not pass 0.01


class Interrupted(Exception):
    """A signal asked the run to end, and it is saved."""


class Checkpoints:
    """The two newest checkpoints of the run `name`: `<folder>/<name>.pt` and `<name>.previous.pt`."""

    def __init__(self, folder, name):
        self.newest = Path(folder) / f"{name}.pt"
        self.previous = Path(folder) / f"{name}.previous.pt"
        self.lock = Path(folder) / f".{name}.lock"  # for who works on the run

    def exist(self):
        """Tell whether there is one."""
        return self.newest.exists() or self.previous.exists()

    def remove(self):
        """Delete both."""
        for path in (self.newest, self.previous):
            path.unlink(missing_ok=True)

    def save(self, state):
        """Write {name: tensors and plain values}; the two earlier ones are there until this one is safe on the disk."""
        with records.replacing(self.newest, self.previous) as file:
            file.write(MAGIC + bytes(32))
            hashed = _Hashed(file)
            torch.save(state, hashed)
            if hashed.error:
                raise hashed.error
            file.seek(len(MAGIC))
            file.write(hashed.digest.digest())

    def load(self, device):
        """Yield (path, state) of the newest, then of the one before, as far as they are there and whole.

        Says on standard error what is damaged.
        """
        for path in (self.newest, self.previous):
            try:
                yield path, _read(path, device)
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                print(f"warning: {path} is damaged ({utils.reason(error)})", file=sys.stderr)


class _Hashed:
    """What torch.save writes to: hashes on the way, and keeps an error for later, since torch would not survive it."""

    def __init__(self, file):
        self.file, self.digest, self.error = file, hashlib.sha256(), None

    def write(self, data):
        if self.error is None:
            self.digest.update(data)
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self):
        pass


def _read(path, device):
    """Return the state in the file; raises ValueError, or OSError, if it is not whole."""
    with files.open_regular(path, files.CHECKPOINT) as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ValueError("not a checkpoint of this version")
        if file.read(32) != hashlib.file_digest(file, "sha256").digest():
            raise ValueError("its checksum is wrong")
        file.seek(len(MAGIC) + 32)
        state = tensors.load_open(file, device)
    if not isinstance(state, dict):
        raise ValueError("it holds no state")
    return state


# --------------------------------------------------------------------------------------------------------------------
# What is in them


def state_of(exp):
    """Return the state {name: tensors and plain values} of a fedalg.Experiment between two clients, or two rounds."""
    return {
        "settings": utils.settings_of(exp.args),
        "data": exp.splits.fingerprint,
        "split": partitions.partition_hash(exp.parts),
        "payload_version": payload.VERSION,
        "code": provenance.code_hash(),
        "theta": exp.theta,
        "algorithm": exp.algorithm.state(),
        "local": exp.trainer.local.state(),
        "downlink": exp.downlink.state(),
        "rows": exp.rows,
        "traffic": exp.traffic,
        "cohort": exp.cohort and exp.cohort.state(),
    }


def resume(exp, checkpoints):
    """Put the newest whole checkpoint into `exp`; return the settings {name: value} it was made with, None without one.

    Raises InputError if it is of other settings, of another split or version, or if all there are are damaged.
    """
    for path, state in checkpoints.load(exp.device):
        try:
            checkpoint_state.check_origin(state)
            settings, split, version = state["settings"], state["split"], state["payload_version"]
            samples = state["data"]
            differing = utils.differing_settings(exp.args, settings)
            differing += [name for name in ("wire", "metrics_dir") if _at(name, settings) != _at(name, vars(exp.args))]
        except (KeyError, TypeError, ValueError) as error:
            print(f"warning: {path} is damaged ({utils.reason(error)})", file=sys.stderr)
            continue
        for name in differing:
            mine, other = getattr(exp.args, name), settings.get(name)
            raise InputError(
                f"{path} is of a run with {name} = {other}, not {mine}: another --checkpoint_dir, or --fresh"
            )
        if samples != exp.splits.fingerprint:
            raise InputError(f"{path} is of a run on other files of {exp.args.dataset}: move it away, or --fresh")
        if split != partitions.partition_hash(exp.parts):
            raise InputError(f"{path} is of a run on another split of the data: move it away, or --fresh")
        if version != payload.VERSION:
            raise InputError(f"{path} is of a version that counted bytes otherwise: --fresh")
        try:
            _restore(exp, state)
        except ValueError as error:
            print(f"warning: {path} is damaged ({utils.reason(error)})", file=sys.stderr)
            continue
        if state.get("code") != provenance.code_hash():
            print(f"warning: {path} was left by another version of the code; --fresh starts over", file=sys.stderr)
        return settings
    if checkpoints.exist():
        raise InputError(f"{checkpoints.newest}: no checkpoint of this run is whole: --fresh starts it over")
    return None


def _at(name, settings):
    """Return a setting; a folder wherever it is named from, and by whatever name."""
    return os.path.realpath(settings[name]) if name.endswith("_dir") else settings[name]


def _restore(exp, state):
    """Put the state into `exp`, all of it, or raise ValueError and nothing of it."""
    checkpoint_state.check(exp, state)
    exp.downlink.load(state["downlink"])
    exp.theta = state["theta"]
    exp.algorithm.load(state["algorithm"])
    exp.trainer.local.load(state["local"])
    exp.rows = [dict(row) for row in state["rows"]]
    exp.traffic = {client: list(counts) for client, counts in state["traffic"].items()}
    rounds.resume_round(exp, state["cohort"])


# --------------------------------------------------------------------------------------------------------------------
# When


class Keeper:
    """Saves a run now and then, and when a signal asks it to end."""

    def __init__(self, checkpoints, every=None):
        """every: rounds between checkpoints; if None, they follow so that they take less than 1 % of the time."""
        self.checkpoints, self.every, self.asked = checkpoints, every, None
        self.begun = self.last = time.monotonic()
        self.cost, self.spent = 0.1, 0.0  # seconds: of the last one, at first a guess, and of all
        self.longest = 0.0  # seconds that a client took
        self.ending = False  # whether all is saved that will be

    def due(self):
        """Tell whether a signal came, or the last checkpoint is ten minutes old."""
        return self.asked is not None or time.monotonic() - self.last > LONGEST

    def after_client(self, exp):
        """Save if it is `due`; raise Interrupted, when saved, if a signal came."""
        if self.due():
            self.save(exp)
        self.heed(exp)

    def heed(self, exp):
        """Raise Interrupted if a signal came."""
        if self.asked is not None:
            self.ending = True
            place = f"round {len(exp.rows) + 1}, {exp.cohort.progress()}" if exp.cohort else f"round {len(exp.rows)}"
            raise Interrupted(f"stopped by {signal.Signals(self.asked).name} after {place}; the same command goes on")

    def after_round(self, exp):
        """Save if it is time; raise Interrupted, when saved, if a signal came."""
        self.after_client(exp)
        if self.every is None:
            due = self.spent + self.cost < SHARE * (time.monotonic() - self.begun)
        else:
            due = len(exp.rows) % self.every == 0
        if due and len(exp.rows) < exp.args.n_epochs:
            self.save(exp)

    def save(self, exp):
        """Write a checkpoint."""
        started = time.monotonic()
        self.checkpoints.save(state_of(exp))
        self.last = time.monotonic()
        self.cost = self.last - started
        self.spent += self.cost

    @contextlib.contextmanager
    def listening(self):
        """Until the body is through, take the first SIGTERM, SIGUSR1 or SIGINT as a wish; a second one ends at once.

        A SIGTERM within a second of another is taken for the same one.
        """

        def hear(number, frame):
            if self.ending or (number == self.asked == signal.SIGTERM and time.monotonic() - since[0] < 1):
                return  # the same one once more: a job's shell and the scheduler both pass it on
            if self.asked is not None:
                os._exit(128 + number)
            self.asked, since[0] = number, time.monotonic()
            most = f", up to about {math.ceil(self.longest)} s" if self.longest else " (none has ended yet)"
            name = signal.Signals(number).name
            _say_at_once(f"{name}: ends and saves after the client at hand{most}; again ends at once")

        since = [0.0]
        before = {number: signal.signal(number, hear) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, afterwards(handler))


def _say_at_once(line):
    """Print on standard error, though a signal may have come while something else was printed there."""
    line = "\n" * sys.stderr.isatty() + line  # a bar may be there
    try:
        print(line, file=sys.stderr, flush=True)
    except RuntimeError:  # it did, and Python does not begin twice
        os.write(2, f"{line}\n".encode())
