"""Files of --partition_file: which of them a run means, what may be in it, and what the split in it is called.

    {"name": "two classes", "unused": true, "clients": [[0, 5], [1, 2]],
     "made_for": {"dataset": "DIGITS", "seed": 0, "shift": "label"}, "labels_sha256": "..."}

is a split made by hand: for each client, positions in the training set. `name` and `unused`, which says that samples
may be left out, are optional; `python data.py --stamp` writes the last two. One that a run drew and saved has the
settings `drawn_by` instead.

Nothing here imports torch.
"""

import argparse
import hashlib
import re
import shlex
from contextlib import suppress
from pathlib import Path

from fedmerge.config.kinds import split_of
from fedmerge.errors import InputError
from fedmerge.registry import specs
from fedmerge.saving import read_json

SPLITTING = ("dataset", "seed", "shift", "dirichlet", "partition", "n_clients", "min_client_samples")
ONCE = {"shift": "label"}  # what a file of before there was a setting was drawn with, where that is not None


def drawn_split(args):
    """Return {name: value} of the settings by which a run draws its split."""
    return {name: getattr(args, name) for name in SPLITTING}


def read(path):
    """Return the content {name: value} of a split file, None if there is none. Raises InputError if it is not one."""
    content = read_json(path)
    if content is None:
        return None
    kinds = {"name": str, "unused": bool, "drawn_by": dict, "made_for": dict, "labels_sha256": str, "clients": list}
    wrong = [name for name, kind in kinds.items() if name in content and type(content[name]) is not kind]
    if not wrong and not _is_split(content.get("clients")):
        wrong = ["clients"]
    if wrong:
        raise InputError(f'{path}: not a partition file: its "{wrong[0]}" is not what it should be')
    return content


def _is_split(clients):
    """Tell whether it is a list of lists of whole numbers of 64 bits."""
    if not clients or not all(type(part) is list for part in clients):
        return False
    return all(type(number) is int and -(2**63) <= number < 2**63 for part in clients for number in part)


def hand_made(args):
    """Return the content of the file of a split made by hand, None if the run draws its split, or did.

    Raises InputError if the file belongs to other settings, or does not tell for which labels it was made.
    """
    path = split_path(args)
    content = path and read(path)
    if content is None:
        return None
    drawn = content.get("drawn_by")
    belongs, how = (drawn, "drawn with") if drawn else (content.get("made_for", {}), "made for")
    known = drawn_split(args)
    told = {name: belongs.get(name, ONCE.get(name)) for name in known if drawn or name in belongs}
    differs = [f"--{name} {known[name]} (but {value})" for name, value in told.items() if value != known[name]]
    if differs:
        raise InputError(f"--partition_file {path}: was not {how} {', '.join(differs)}")
    if "labels_sha256" not in content:
        raise InputError(
            f"--partition_file {path}: does not tell for which labels it was made: '{stamping(args)}' checks it and "
            "writes that into it"
        )
    return None if drawn else content


def stamping(args):
    """Return the command that makes a split made by hand one for the data of these settings."""
    words = ["--stamp", split_path(args), "--dataset", args.dataset, "--seed", args.seed]
    words += ["--shift", args.shift] if args.shift != "label" else []
    words += [] if args.validation else ["--no-validation"]
    words += ["--data_root", args.data_root] if args.data_root != "./data" else []
    return shlex.join(["python", "data.py", *map(str, words)])


def drawn_as(settings):
    """Return how the settings {name: value} of a run draw its split, as --partition has it: "dirichlet:0.5", "iid",
    "labels:2"; None if it is made by hand.
    """
    level = settings.get("dirichlet")
    return settings.get("partition") or (level if level in (None, "iid") else f"dirichlet:{level}")


def split_title(how, told=None):
    """Return what figures and messages call a split that is drawn as --partition has it: "Dirichlet(0.5)".

    One of a partition that is not at hand is called what was `told` of it, or what it is drawn as.
    """
    try:
        spec, value = split_of(how)
    except argparse.ArgumentTypeError:
        return told or plain(how)
    return spec.title.format(value=value)


def split_name(args):
    """Return what the split of a run is called: "iid", the concentration, "labels-2", or the name of one made by hand.

    That is what the file says, or its own name without the seed. Raises InputError for one that reads like a level.
    """
    if args.dirichlet is not None:
        return str(args.dirichlet)
    if args.partition is not None:
        return drawn_name(args.partition)
    content = hand_made(args) or {}
    file = Path(args.partition_file)
    stem = re.sub(r"[-_. ]*\{seed\}", "", file.stem).strip("-_. ")
    name = plain(content.get("name") or stem or file.parent.name or "split")
    if _is_level(name) or len(name) > 60:
        raise InputError(
            f"--partition_file {split_path(args)}: its split cannot be called {name[:60]!r}, which is too long or the "
            'name of a drawn one: write another "name" into it'
        )
    return name


def drawn_name(how):
    """Return what the name of a run calls a split that is drawn as --partition has it: "labels-2", "extended-2-0.5".

    A hash stands for what cannot be in it of the value, so that 1e+20 is not 1e-20.
    """
    value = how.partition(":")[2].replace(",", "-")
    return plain(how) + hash_unless(value == plain(value), how)


def hash_unless(told, text):
    """Return "" if the text is `told` as it is, else "-" and 8 hex digits of a hash of it."""
    return "" if told else f"-{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def _is_level(name):
    """Tell whether it could be a value of --dirichlet, or of --partition with a hyphen."""
    with suppress(ValueError):
        float(name)
        return True
    kind, hyphen, value = name.partition("-")
    spec = specs("partition").get(kind)
    commas = spec.more.get("value", "").count(",") if spec else 0
    with suppress(argparse.ArgumentTypeError):
        split_of(kind + (":" if hyphen else "") + value.replace("-", ",", commas))
        return True
    return name.lower() == "iid"


def split_path(args):
    """Return the Path of --partition_file, in which {seed} stands for the run's, or None."""
    return Path(args.partition_file.replace("{seed}", str(args.seed))) if args.partition_file else None


def plain(text):
    """Return the text with a hyphen for every character that a name of a file should not have."""
    return re.sub(r"[^A-Za-z0-9.-]", "-", text)
