"""Files of torch.save that somebody else may have written: what is in them is looked at before torch reads it.

torch.load with weights_only runs no code, but it unpacks deflated records, and makes expanded and sparse tensors and
byte arrays of any size: a few bytes become gigabytes. Files of this program hold none of these.
"""

import os
import pickletools
import zipfile

import torch

from fedmerge import files
from fedmerge.errors import InputError, reason

STORAGES = ("Float", "Double", "Half", "BFloat16", "Byte", "Char", "Short", "Int", "Long", "Bool")
NAMES = {"torch._utils _rebuild_tensor_v2", "collections OrderedDict", *(f"torch {kind}Storage" for kind in STORAGES)}


def load(path, limit, kind):
    """Return what torch.save wrote to `path`: plain values and tensors on the CPU, dense and with memory of their own.

    Raises InputError, which says that it is no `kind`, for any other file or one of more than `limit` bytes.
    """
    try:
        with files.open_regular(path, limit) as file:
            return load_open(file)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except BadFile as error:
        raise InputError(f"{path}: not {kind} ({error})") from None


class BadFile(ValueError):
    """Not what torch.save makes of plain values and tensors."""


def load_open(file, device="cpu"):
    """Return what torch.save wrote from here to the end of an open file. Raises BadFile if it did not."""
    begin = file.tell()
    try:
        _check_records(file)
        file.seek(begin)
        return torch.load(file, map_location=device, weights_only=True)
    except Exception as error:  # zipfile, pickletools and torch have an exception of its own for each way it can be bad
        raise BadFile(reason(error)) from None


def _check_records(file):
    """Raise ValueError if the zip archive in `file` unpacks to more than itself, or names what needs no name here."""
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        stored = all(r.compress_type == zipfile.ZIP_STORED and r.file_size == r.compress_size for r in records)
        if not stored or sum(r.file_size for r in records) > os.fstat(file.fileno()).st_size:
            raise ValueError("its records are compressed")
        programs = [r for r in records if r.filename.lower().endswith("data.pkl")]
        if len(programs) != 1 or archive.comment:
            raise ValueError("it is not one object")
        _check_names(archive.read(programs[0]))


def _check_names(program):
    """Raise ValueError if a pickle names anything but dense tensors of the usual kinds."""
    for operation, argument, _ in pickletools.genops(program):
        if operation.name in ("STACK_GLOBAL", "INST") or (operation.name == "GLOBAL" and argument not in NAMES):
            raise ValueError(f"it has {ascii(argument)[:80]} in it")


def is_plain(value):
    """Tell whether it is a dense tensor with memory of its own for each of its numbers."""
    if type(value) is not torch.Tensor or value.layout != torch.strided or value.is_meta or value.is_quantized:
        return False
    own = value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    return own and not (value.is_nested or value.is_neg() or value.is_conj() or value.requires_grad)
