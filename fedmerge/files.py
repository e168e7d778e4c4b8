"""Files that somebody else may have put there: only regular ones are opened, and only of a size that suits their kind.

A FIFO would be waited for, a device has no end, and a sparse file of gigabytes takes no space on the disk that it comes
from. Where this program writes, there is nothing yet or a regular file: no link is followed, no device replaced.

Nothing here imports torch.
"""

import os
import stat
from pathlib import Path

from fedmerge.errors import InputError

# The largest file that is read of each kind, in bytes: generously more than this program or the publishers write.
LIST = 2**24  # of experiments, or --config
JSON = 2**28  # a record, a split, clients.json: a million clients fit
CSV = 2**28  # metrics, results
TABLE = 2**27  # of runs, as it is and unpacked
WEIGHTS = 2**33 + 2**24  # --init_weights: 2^31 weights
CACHE = 2**32  # of Tiny-ImageNet, which has 1.4 GB
DATA = 2**28  # a file of a dataset; the largest, CIFAR-100's training set, has 155 MB
ARCHIVE = 2**31  # of a dataset, packed
IMAGE = 2**26  # one picture
CHECKPOINT = 2**40


def open_regular(path, limit):
    """Open a file for reading bytes. Raises FileNotFoundError if there is none.

    Raises InputError if it is not a regular file, has more than `limit` bytes, or cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO is not waited for
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:  # a NUL in the name
        raise InputError(f"{str(path)!r}: is no name of a file") from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{path}: is not a regular file")
        if found.st_size > limit:
            raise InputError(f"{path}: has {found.st_size} bytes, more than the {limit} that are read of such a file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path, limit):
    """Return the content of a file; see `open_regular`."""
    with open_regular(path, limit) as file:
        return file.read()


def read_text(path, limit):
    """Return the content of a file as str; see `open_regular`. Raises InputError, too, if it is not UTF-8."""
    try:
        return read_bytes(path, limit).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not text ({error})") from None


def is_regular(path):
    """Tell whether there is a regular file, and no link, at `path`."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def check_writable(*paths):
    """Raise InputError if at one of the paths there is something else than a regular file: a link, a device, a folder.

    The folders that lead there may be links.
    """
    for path in paths:
        if os.path.lexists(path) and not is_regular(path):
            kind = "a symbolic link" if os.path.islink(path) else "a folder or a device"
            raise InputError(f"{path}: is not a file that can be written, but {kind}: move it away")


def create(path):
    """Open a new file for writing bytes; what was there is unlinked first, so that no link to it is followed."""
    Path(path).unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "wb")
