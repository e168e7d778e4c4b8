"""Checkpoints on disk: the two newest of a run, each with its hash.

A checkpoint is a line that names the format, the SHA-256 of what follows, and what torch.save makes of tensors and
plain values.
"""

import hashlib
import sys
from pathlib import Path

import torch

from fedmerge import files, saving, tensor_files
from fedmerge.errors import reason

MAGIC = b"fedalg checkpoint 5\n"


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
        """Delete both, the newest last: who is killed in between goes on after the last round, not before it."""
        for path in (self.previous, self.newest):
            path.unlink(missing_ok=True)

    def save(self, state):
        """Write {name: tensors and plain values}; the two earlier ones are there until this one is safe on the disk."""
        with saving.replacing(self.newest, self.previous) as file:
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
                print(f"warning: {path} is damaged ({reason(error)})", file=sys.stderr)


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
        state = tensor_files.load_open(file, device)
    if not isinstance(state, dict):
        raise ValueError("it holds no state")
    return state
