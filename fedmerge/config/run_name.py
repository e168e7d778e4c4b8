"""The names of runs, and which of their settings matter.

Nothing here imports torch.
"""

import hashlib
from pathlib import Path

from fedmerge import files
from fedmerge.config.options import acts, all_options
from fedmerge.config.resolve import with_defaults
from fedmerge.config.split_files import drawn_as, hash_unless, plain, split_name, split_path
from fedmerge.registry import WITH_OPTIONS, find, one_look

LONGEST = 240  # bytes of a name: file systems allow 255, and "_metrics.csv" comes on top


@one_look()
def run_name(args):
    """Return `algorithm_dataset_split_seed`, then `_option=value` for each other setting that changes the result
    and is not at its default. Different settings give different names."""
    parts = [args.algorithm, args.dataset, split_name(args), str(args.seed)]
    usual = ("algorithm", "dataset", "dirichlet", "partition", "seed")
    parts += [f"{name}={_label(name, value)}" for name, value in told_settings(args).items() if name not in usual]
    full = "_".join(parts)
    if len(full) <= 180 and len(full.encode()) <= LONGEST:
        return full
    begin = full.encode()[:160].decode(errors="ignore")
    return f"{begin}_{hashlib.sha256(full.encode()).hexdigest()[:12]}"


def told_settings(args):
    """Return {name: value} of the settings that change the result and are not at their defaults."""
    defaults = default_settings(args)
    defaults["model_name"] = with_defaults({"dataset": args.dataset}).model_name
    found = {}
    for name, option in all_options().items():
        value = getattr(args, name)
        if name == "partition_file":
            value = None if drawn_as(vars(args)) else split_path(args)  # otherwise it holds what the run draws
        if option.named and value != defaults[name] and acts(option, vars(args)):
            found[name] = value
    return found


def acting(settings):
    """Return {name: value} of the `settings` that have an effect beside the others.

    Of a component that is not at hand, as one of a plugin may not be, nobody knows what it does without: all stay.
    """
    strange = {axis for axis in WITH_OPTIONS if settings.get(axis) is not None and find(axis, settings[axis]) is None}

    def act(name):
        option = all_options().get(name)
        if option is None or {option.axis, option.needs.partition("=")[0]} & strange:
            return True
        return acts(option, settings)

    return {name: value for name, value in settings.items() if act(name)}


DECIDING = (
    "dataset",
    "model_name",
    "algorithm",
    "preset",
    "local_optimizer",
    "trainable",
)  # other settings' defaults hang on these


def default_settings(args):
    """Return {name: value} of what is not named to a run of this dataset, model, algorithm and preset."""
    usual = vars(with_defaults({"algorithm": args.algorithm, "preset": args.preset}))
    chosen = vars(with_defaults({name: getattr(args, name) for name in DECIDING}))
    return chosen | {"preset": None, **{name: usual[name] for name in ("local_optimizer", "trainable")}}


def _label(name, value):
    if name in ("init_weights", "partition_file"):
        return _with_hash(value)
    text = str(value).replace("/", ".") if name == "model_name" else str(value)  # a slash would be a folder
    whole = text.isprintable() and not set(text) & set("/\\")  # it stays in its folder
    return text if whole else plain(text) + hash_unless(whole, text)


def _with_hash(path):
    """Return the file's stem and a hash of its content: the same path may hold something else tomorrow."""
    with files.open_regular(path, files.WEIGHTS) as file:
        return f"{plain(Path(path).stem)}-{hashlib.file_digest(file, 'sha256').hexdigest()[:8]}"


def settings_of(args):
    """Return {name: value} of the settings that the run depends on: every option but those of components that were
    not chosen; local methods' are all there."""
    options = all_options().items()
    foreign = {n for n, o in options if o.axis not in ("", "local") and not o.is_of(getattr(args, o.axis))}
    return {name: getattr(args, name) for name, _ in options if name not in foreign}


def differing_settings(args, settings):
    """Return the names of the result-changing settings in which `args` differs from `settings` of an earlier run."""
    mine = settings_of(args)
    named = [name for name, option in all_options().items() if option.named and name in mine]
    return [n for n in named if n not in ("partition_file", "init_weights") and mine[n] != settings.get(n, mine[n])]
