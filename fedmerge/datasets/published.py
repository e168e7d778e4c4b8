"""What the readers of published files have in common: these are somebody else's input, so nothing of them is trusted or
executed.
"""

import gzip
import hashlib
import sys
import tarfile
import zlib
from pathlib import Path

from fedmerge import files
from fedmerge.datasets.images import Images
from fedmerge.errors import InputError, reason
from fedmerge.registry import having

MAX_BYTES = files.DATA  # of one file, unpacked
MAX_UNPACKED = 2**29  # of all that is in an archive; CIFAR's have 190 MB
SIDES = (4, 512)  # pixels of an image, as networks take them


def as_images(parts):
    """Return the training and the test Images of {"train": (images, labels), "test": ...}."""
    return Images(*parts["train"]), Images(*parts["test"])


def warn(message):
    print(f"warning: {message}", file=sys.stderr)


def check_sums(source, blobs):
    """Say so if the files [(bytes, published MD5)] of `source` are not the published ones."""
    if any(hashlib.md5(blob).hexdigest() != md5 for blob, md5 in blobs):
        warn(f"{source} does not hold the published files (their MD5 differs); using it all the same")


def missing(name, root):
    """Return the InputError that says how to get the dataset `name`."""
    return InputError(f"no {name} in {root}: run 'python data.py --download {name} --data_root {root}'{or_without()}")


def or_without():
    """Return in words what can be used without a download, "" if nothing can."""
    return "".join(f", or use --dataset {name}, which needs no download" for name in having("dataset", "bundled")[:1])


def read_tar(archive, wanted):
    """Return {file name: bytes} of the files in the archive that have a `wanted` name; nothing is written to disk."""
    try:
        with (
            files.open_regular(archive, files.ARCHIVE) as packed,
            gzip.open(packed) as unpacked,
            tarfile.open(fileobj=_Bounded(unpacked), mode="r|") as tar,
        ):
            return {Path(m.name).name: tar.extractfile(m).read() for m in tar if _is_wanted(m, wanted)}
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{archive}: not a whole tar.gz archive ({reason(error)})") from None


def _is_wanted(member, wanted):
    return member.isfile() and Path(member.name).name in wanted and member.size < MAX_BYTES


class _Bounded:
    """Reads a stream that may unpack to anything: MAX_UNPACKED bytes of it, then it is an error."""

    def __init__(self, stream):
        self.stream, self.left = stream, MAX_UNPACKED

    def read(self, size):
        data = self.stream.read(min(size, self.left + 1))
        self.left -= len(data)
        if self.left < 0:
            raise tarfile.ReadError(f"unpacks to more than {MAX_UNPACKED} bytes")
        return data
