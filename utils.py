"""Command line, run names and settings, and keyed seeds.

Nothing here imports torch at module level, so that `--help` and refused command lines answer at once.
"""

import argparse
import difflib
import hashlib
import os
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from options import (
    KINDS,
    OPTIONS,
    REGISTRIES,
    algorithm_options,
    algorithm_specs,
    all_options,
    local_options,
    local_specs,
)


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line that says what to change."""


# --------------------------------------------------------------------------------------------------------------------
# Parsing


class _Parser(argparse.ArgumentParser):
    """One line per error, exit status 2; no flag is guessed from its first letters."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message):
        unknown = re.search(r"unrecognized arguments: --(\w+)", message)
        if unknown:
            near = {"rounds": ["n_epochs"], "epochs": ["n_epochs"], "local_epochs": ["n_client_epochs"]}
            found = near.get(unknown[1]) or difflib.get_close_matches(unknown[1], all_options(), n=1)
            message += "".join(f" (did you mean --{name}?)" for name in found)
        sys.stderr.write(f"{self.prog}: error: {' '.join(message.split())}\n")
        raise SystemExit(2)


def build_parser(prog="fedalg.py"):
    """Return the parser of `fedalg.py`. A flag that was not given is absent from what it returns."""
    parser = _Parser(
        prog=prog,
        description="Simulated federated learning: local training, merging, evaluation, one CSV row a round.",
        epilog=_about_algorithms(),
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=118),
    )
    parser.add_argument("--config", metavar="FILE", help="file of flags, one a line; the command line wins")
    for title, options in OPTIONS.items():
        group = parser.add_argument_group(title)
        for option in options:
            _add(group, option, option.help)
    local = local_options().values()
    for needs in sorted({option.needs for option in local}):
        group = parser.add_argument_group("only with --" + needs.replace("=", " ").replace("|", " or "))
        for option in local:
            if option.needs == needs:
                _add(group, replace(option, needs=""), option.help)
    owned = algorithm_options().values()
    for owners in sorted({tuple(owners) for _, owners in owned}):
        group = parser.add_argument_group("only with --algorithm " + " or ".join(owners))
        for option, mine in owned:
            if tuple(mine) == owners:
                _add(group, option, option.help)
    return parser


def _about_algorithms():
    def flags(settings):
        return " ".join(f"--{name}" if value is True else f"--{name} {value}" for name, value in settings.items())

    lines = [f"--local {name}: {spec.summary}" for name, spec in sorted(local_specs().items())]
    for name, spec in sorted(algorithm_specs().items()):
        lines.append(f"{name}: {spec.summary}" + (f", which is {flags(spec.defaults)}" if spec.defaults else ""))
        lines += [f"{name} --preset {preset}: {flags(values)}" for preset, values in sorted(spec.presets.items())]
    return "; ".join(lines)


def _add(group, option, text):
    if option.needs:
        text += f" (with {option.needs_in_words})"
    if option.default is not None and option.kind != "flag":
        text += f" [{option.default}]"
    text = text.replace("%", "%%")  # argparse fills in what follows a single one
    if option.kind == "flag":
        group.add_argument(f"--{option.name}", action=argparse.BooleanOptionalAction, help=text)
    elif option.kind is tuple or isinstance(option.kind, tuple):
        choices = REGISTRIES[option.name]() if option.kind is tuple else option.kind
        group.add_argument(f"--{option.name}", choices=choices, help=text)
    else:
        metavar = {"path": "PATH", "count": "N", "integer": "N", "size": "N", "bits": "{32,16,8,4,1}"}.get(
            option.kind, "X"
        )
        group.add_argument(f"--{option.name}", type=KINDS[option.kind], metavar=metavar, help=text)


def parse_args(argv=None):
    """Parse and check the command line; return a Namespace with every setting resolved.

    Exits with status 2 and one line on standard error if a flag is unknown, out of range or contradicts another.
    Needs no torch and writes nothing.
    """
    parser = build_parser()
    given = parser.parse_args(sys.argv[1:] if argv is None else argv)
    config = _read_config(parser, given.config) if "config" in given else argparse.Namespace()
    try:
        return resolve({**vars(config), **vars(given)}, explicit=set(vars(given)))
    except InputError as error:
        parser.error(str(error))


def _read_config(parser, path):
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        lines = [shlex.split(line, comments=True) for line in lines]
    except (OSError, ValueError) as error:
        parser.error(f"--config {path}: {error}")
    for number, words in enumerate(lines, start=1):
        if words and not words[0].startswith("--"):
            parser.error(f"--config {path}: line {number}: not a flag, such as --lr 0.01: {' '.join(words)!r}")
    tokens = [word for words in lines for word in words]
    config = build_parser(f"fedalg.py: --config {path}").parse_args(tokens)
    if "config" in config:
        parser.error(f"--config {path}: a config file cannot name another one")
    return config


def resolve(given, explicit=()):
    """Fill in the defaults of `given` {name: value} and check how the settings go together.

    `explicit` names the settings typed on the command line: of these, one that the chosen algorithm does not have is an
    error, whereas a config file may be shared by several algorithms. Raises InputError.
    """
    if given.get("evaluate_clients") is not None:
        changing = {name for name, option in all_options().items() if option.named} | {"save_clients", "save_weights"}
        others = sorted(changing & set(explicit))
        if others:
            raise InputError(f"--evaluate_clients has its settings from the folder: leave out --{others[0]}")
    args = _with_defaults(given)
    _check_needs(args, explicit)
    _check_dataset(args)
    _check_combinations(args)
    _check_paths(args)
    _check_split(args, explicit)
    return args


def _with_defaults(given):
    options = {name: option.default for name, option in all_options().items()}
    spec, preset = algorithm_specs()[given.get("algorithm", options["algorithm"])], given.get("preset")
    if preset and preset not in spec.presets:
        raise InputError(
            f"--preset {preset}: --algorithm {given.get('algorithm', options['algorithm'])} has none of this name"
        )
    values = options | spec.defaults | spec.presets.get(preset, {}) | given
    values.pop("config", None)
    args = argparse.Namespace(**values)
    digits = args.dataset.startswith("DIGITS")
    args.model_name = args.model_name or ("cnn" if digits else "resnet18")
    args.norm = args.norm or ("none" if args.model_name == "cnn" else "batch")
    args.lr = args.lr or {"sgd": 0.01, "adam": 5e-4}[args.local_optimizer]
    args.augment = args.augment or ("none" if digits else "standard")
    return args


def _check_needs(args, explicit):
    """Refuse flags in `explicit` that have no effect with the others; put all that have none to their defaults."""
    owners_of = {name: owners for name, (_, owners) in algorithm_options().items()}
    for name, option in all_options().items():
        owners = owners_of.get(name)
        idle = owners is not None and args.algorithm not in owners
        missing = not _acts(option, vars(args))
        if name in explicit and getattr(args, name) != option.default:
            if idle:
                raise InputError(
                    f"--{name} has no effect with --algorithm {args.algorithm} (only: {', '.join(owners)})"
                )
            if missing:
                raise InputError(f"--{name} has no effect without {option.needs_in_words}")
        if idle or missing:
            setattr(args, name, option.default)


def _acts(option, settings):
    """Tell whether what the Option needs is so in {name: value}."""
    other, _, wanted = option.needs.partition("=")
    if not other:
        return True
    value = settings.get(other, all_options()[other].default)
    return str(value) in wanted.split("|") if wanted else value != all_options()[other].default


def _check_combinations(args):
    if args.algorithm == "centralised" and (args.n_clients, args.participation, args.dirichlet) != (1, 1, "iid"):
        raise InputError("--algorithm centralised has one client with all the data: leave out --n_clients and the like")
    if args.save_clients and args.shift == "feature":
        raise InputError("--save_clients compares clients by their mix of classes: leave it out with --shift feature")
    if args.pretrained and args.init_weights:
        raise InputError("--pretrained and --init_weights both set the starting weights: give one")
    if args.pretrained and args.model_name == "cnn":
        raise InputError(
            "--pretrained needs --model_name resnet18 or resnet50: there are no published weights of the cnn"
        )
    if args.pretrained and args.norm != "batch":
        raise InputError(f"--pretrained needs --norm batch: the published weights have no {args.norm} norm")
    if args.norm == "batch" and args.batch_size == 1:
        raise InputError("--batch_size 1 is too small for BatchNorm: at least 2, or --norm group")
    if args.norm == "none" and args.model_name != "cnn":
        raise InputError(f"--norm none is for the cnn; {args.model_name} needs batch or group")
    if args.augment == "standard" and args.dataset.startswith("DIGITS"):
        raise InputError("--augment standard is not for DIGITS: a flipped or shifted 8x8 digit is another image")


def _check_dataset(args):
    known = REGISTRIES["dataset"]()
    is_name = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", args.dataset)
    if args.dataset not in known and not (is_name and (Path(args.data_root) / args.dataset).is_dir()):
        raise InputError(
            f"--dataset {args.dataset}: is none of {', '.join(known)}, nor a folder of images in {args.data_root}"
        )


def _check_split(args, explicit):
    """Make --dirichlet None where --partition_file holds a split made by hand, and refuse it if it was typed."""
    from partition_files import hand_made

    if not args.partition_file or hand_made(args) is None:
        return
    if "dirichlet" in explicit:
        raise InputError(
            f"--dirichlet has no effect with --partition_file {args.partition_file}, a split made by hand: leave it out"
        )
    args.dirichlet = None


def _check_paths(args):
    for name, option in all_options().items():
        if option.kind == "path" and getattr(args, name) == "":
            raise InputError(f"--{name}: the path is empty")
    if args.partition_file and not Path(args.partition_file).suffix == ".json":
        raise InputError(f"--partition_file {args.partition_file}: the file's name must end in .json")
    if args.init_weights and not Path(args.init_weights).is_file():
        raise InputError(f"--init_weights {args.init_weights}: no such file")
    for name in ("metrics_dir", "plots_dir", "checkpoint_dir", "save_clients"):
        if getattr(args, name) is not None:
            _check_folder(name, Path(getattr(args, name)))
    for name in ("results_file", "save_weights", "partition_file"):
        if getattr(args, name) is not None:
            path = split_path(args) if name == "partition_file" else Path(getattr(args, name))
            if path.is_dir() or (path.exists() and not path.is_file()):
                raise InputError(f"--{name} {path}: is not a file that can be written")
            _check_folder(name, path.parent)


def _check_folder(name, folder):
    """Raise InputError unless `folder`, or the nearest parent of it that exists, is a folder that can be written."""
    folder = Path(os.path.abspath(folder))
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"--{name}: {folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"--{name}: the folder {folder} cannot be written")


# --------------------------------------------------------------------------------------------------------------------
# Names and settings of a run


def run_name(args):
    """Return `algorithm_dataset_split_seed`, then `_option=value` for each other setting that changes the result
    and is not at its default. Different settings give different names."""
    from partition_files import split_name

    defaults = default_settings(args)
    defaults["model_name"] = _with_defaults({"dataset": args.dataset}).model_name
    parts = [args.algorithm, args.dataset, split_name(args), str(args.seed)]
    for name, option in all_options().items():
        value = getattr(args, name)
        if name == "partition_file":
            value = split_path(args) if args.dirichlet is None else None  # otherwise it holds what the run draws
        usual = ("algorithm", "dataset", "dirichlet", "seed")
        if option.named and name not in usual and value != defaults[name] and _acts(option, vars(args)):
            parts.append(f"{name}={_label(name, value)}")
    full = "_".join(parts)
    if len(full) <= 180:
        return full
    return f"{full[:160]}_{hashlib.sha256(full.encode()).hexdigest()[:12]}"  # file systems allow 255 bytes a name


def acting(settings):
    """Return {name: value} of the `settings` that have an effect beside the others."""
    return {
        name: v for name, v in settings.items() if name not in all_options() or _acts(all_options()[name], settings)
    }


DECIDING = ("dataset", "model_name", "algorithm", "preset", "local_optimizer")  # other settings' defaults hang on these


def default_settings(args):
    """Return {name: value} of what is not named to a run of this dataset, model, algorithm and preset."""
    usual = vars(_with_defaults({"algorithm": args.algorithm, "preset": args.preset}))
    chosen = vars(_with_defaults({name: getattr(args, name) for name in DECIDING}))
    return chosen | {"preset": None, "local_optimizer": usual["local_optimizer"]}


def _label(name, value):
    if name in ("init_weights", "partition_file"):
        return _with_hash(value)
    return str(value)


def split_path(args):
    """Return the Path of --partition_file, in which {seed} stands for the run's, or None."""
    return Path(args.partition_file.replace("{seed}", str(args.seed))) if args.partition_file else None


def _with_hash(path):
    """Return the file's stem and a hash of its content: the same path may hold something else tomorrow."""
    return f"{plain(Path(path).stem)}-{hashlib.sha256(Path(path).read_bytes()).hexdigest()[:8]}"


def plain(text):
    """Return the text with a hyphen for every character that a name of a file should not have."""
    return re.sub(r"[^A-Za-z0-9.-]", "-", text)


def settings_of(args):
    """Return {name: value} of the settings that the run depends on: every option but other algorithms' own."""
    foreign = {n for n, (_, owners) in algorithm_options().items() if args.algorithm not in owners}
    return {name: getattr(args, name) for name in all_options() if name not in foreign}


def checked_settings(settings, path):
    """Return the Namespace of {name: value} that a file at `path` holds, checked as if they had been typed.

    Raises InputError. What only the machine that wrote them has, files and folders, is left at its default.
    """
    words = []
    for name, value in settings.items():
        option = all_options().get(name)
        if option is None:
            raise InputError(f"{path}: there is no setting {name}")
        if option.kind == "flag":
            words.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None and option.kind != "path":
            words.append(f"--{name}={value}")
    parser = build_parser()

    def refuse(message):
        raise InputError(f"{path}: {message}")

    parser.error = refuse
    return resolve(vars(parser.parse_args(words)))


def differing_settings(args, settings):
    """Return the names of the result-changing settings in which `args` differs from `settings` of an earlier run."""
    mine = settings_of(args)
    named = [name for name, option in all_options().items() if option.named and name in mine]
    return [n for n in named if n not in ("partition_file", "init_weights") and mine[n] != settings.get(n, mine[n])]


def reason(error):
    """Return what an exception says, in one line."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def round_half_up(x):
    """Return the nearest whole number of a positive x, the larger one of two."""
    return int(x + 0.5)


# --------------------------------------------------------------------------------------------------------------------
# Randomness


def key_seed(seed, *key):
    """Return the 63-bit seed of one purpose, e.g. `key_seed(0, "batches", round, client)`.

    Draws of different keys are independent, so that an algorithm which draws more, a resumed run or another number of
    processes changes nothing for the others.
    """
    digest = hashlib.sha256(repr((int(seed), *key)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed, *key):
    """Return a CPU torch.Generator for one purpose; see `key_seed`."""
    import torch

    return torch.Generator().manual_seed(key_seed(seed, *key))
