"""Settings that go together: defaults filled in, contradictions refused before any work starts.

Nothing here imports torch.
"""

import argparse
import importlib.util
import os
from pathlib import Path

from fedmerge import files
from fedmerge.config.kinds import split_of
from fedmerge.config.option_help import FOLDER_SIZE, MODEL, NORMS
from fedmerge.config.options import REGISTRIES, acts, all_options
from fedmerge.config.own_data import hint, pixels_of, place_of
from fedmerge.config.split_files import hand_made, split_path
from fedmerge.errors import InputError, did_you_mean
from fedmerge.randomness import round_half_up
from fedmerge.registry import AXES, having, one_look, requirements, said, specs


@one_look()
def resolve(given, explicit=()):
    """Fill in the defaults of `given` {name: value} and check how the settings go together.

    `explicit` names the settings typed on the command line: of these, one that the chosen algorithm does not have is an
    error, whereas a config file may be shared by several algorithms. Raises InputError.
    """
    if given.get("evaluate_clients") is not None:
        changing = {name for name, option in all_options().items() if option.named} | {
            "save_clients",
            "save_weights",
            "track",
        }
        others = sorted(changing & set(explicit))
        if others:
            raise InputError(f"--evaluate_clients has its settings from the folder: leave out --{others[0]}")
    args = with_defaults(spread(given))
    _check_needs(args, explicit)
    _check_dataset(args)
    _take_partition(args, given, explicit)
    _check_requirements(args)
    _check_combinations(args)
    _check_effects(args, explicit)
    _check_paths(args)
    _check_split(args, explicit)
    return args


OUTPUTS = {
    "metrics_dir": "metrics",
    "plots_dir": "plots",
    "checkpoint_dir": "checkpoints",
    "results_file": "results.csv",
}


def spread(given):
    """Return `given` {name: value} with the outputs that --out sets, as far as they are not in it."""
    if given.get("out") is None:
        return given
    return {name: os.path.join(given["out"], place) for name, place in OUTPUTS.items()} | given


def with_defaults(given):
    options = {name: option.default for name, option in all_options().items()}
    spec, preset = specs("algorithm")[given.get("algorithm", options["algorithm"])], given.get("preset")
    if preset and preset not in spec.presets:
        raise InputError(
            f"--preset {preset}: --algorithm {given.get('algorithm', options['algorithm'])} has none of this name"
        )
    values = options | spec.defaults | spec.presets.get(preset, {}) | given
    values.pop("config", None)
    if values["init_weights"] and "pretrained" not in given:  # a start of one's own, instead of a preset's
        values["pretrained"] = False
    args = argparse.Namespace(**values)
    args.model_name = args.model_name or said("dataset", args.dataset, "model", MODEL)
    args.norm = args.norm or said("model_name", args.model_name, "norms", NORMS)[0]
    args.bn = args.bn or _default_bn(args)
    args.lr = args.lr or {"sgd": 0.01, "adam": 5e-4}[args.local_optimizer]
    args.image_size = None if args.image_size == _own_size(args) else args.image_size
    args.augment = args.augment or ("standard" if said("dataset", args.dataset, "augment") else "none")
    return args


def _own_size(args):
    """Return how many pixels high the images of the dataset are, None if that is not known."""
    if args.dataset in specs("dataset"):
        return said("dataset", args.dataset, "pixels")
    place = place_of(args.dataset, args.data_root)
    return FOLDER_SIZE if place is None or place.is_dir() else pixels_of(place)


def _default_bn(args):
    return "train" if args.trainable in ("all", "norms") else "frozen"


def _check_needs(args, explicit):
    """Refuse flags in `explicit` that have no effect with the others; put all that have none to their defaults."""
    for name, option in all_options().items():
        if acts(option, vars(args)):
            continue
        if name in explicit and getattr(args, name) != option.default:
            if option.axis and not option.is_of(getattr(args, option.axis)):
                raise InputError(f"--{name} has no effect without {option.owners_in_words}")
            raise InputError(f"--{name} has no effect without {option.needs_in_words}")
        setattr(args, name, option.default)


def _check_requirements(args):
    """Refuse what a chosen component does not go with: its registration says what it requires."""
    for axis in AXES:
        name = getattr(args, axis)
        for flag, able in requirements(specs(axis)[name]).items():
            if getattr(args, flag) not in able:
                values = " or ".join(map(str, able))
                value = getattr(args, flag)
                other = "" if value is None else f", not {value}"
                raise InputError(f"--{axis} {name} needs --{flag} {values}{other}")


def _check_combinations(args):
    if args.residual == "server" and not specs("algorithm")[args.algorithm].more.get("server_residual"):
        able = [name for name, spec in sorted(specs("algorithm").items()) if spec.more.get("server_residual")]
        raise InputError(f"--residual server is for --algorithm {' or '.join(able)}, not {args.algorithm}")
    if args.residual == "server" and not said("compressor", args.compressor, "server_residual"):
        able = " or ".join(having("compressor", "server_residual"))
        raise InputError(f"--residual server keeps all but the largest changes: it needs --compressor {able}")
    if args.residual == "client" and args.compressor == "none" and args.value_bits == 32:
        raise InputError("--residual client has nothing to keep: clients send all of their updates, exactly")
    if args.save_clients and args.shift == "feature":
        raise InputError("--save_clients compares clients by their mix of classes: leave it out with --shift feature")
    spec = importlib.util.find_spec(args.track) if args.track else None  # packages are called as trackers are
    if args.track and getattr(spec, "origin", None) is None:  # a folder of that name is no package
        raise InputError(f"--track {args.track}: the package is not installed: pip install {args.track}")
    if args.head_init and args.attack:
        raise InputError("--head_init: clients that lie would also lie about their features: leave out --attack")
    for name in ("part_sparsity", "part_bits"):
        if args.part_kind != "sparse" and getattr(args, name) is not None:
            raise InputError(f"--{name} has no effect with --part_kind {args.part_kind}, which is a mask: leave it out")
    if args.pretrained and args.init_weights:
        raise InputError("--pretrained and --init_weights both set the starting weights: give one")
    if args.norm == "batch" and args.batch_size == 1:
        raise InputError("--batch_size 1 is too small for BatchNorm: at least 2, or --norm group")
    if args.lora_merge == "products" and args.lora_freeze_a:
        raise InputError("--lora_merge products is the mean of the factors B with --lora_freeze_a: leave one out")
    if args.lora_merge == "products" and args.merge != "mean":
        raise InputError(f"--lora_merge products is a mean: it needs --merge mean, not {args.merge}")
    if args.bn_recalibrate and args.bn == "frozen":
        raise InputError("--bn_recalibrate has no effect with --bn frozen: leave one out")
    if args.eval_every % args.bn_every and "bn_every" not in _without_effect(args):
        raise InputError(
            f"--eval_every {args.eval_every} is no multiple of --bn_every {args.bn_every}: models would be judged by "
            "statistics of earlier rounds"
        )
    _check_network(args)
    why = said("dataset", args.dataset, "never_augmented")
    if args.augment != "none" and why:
        raise InputError(f"--augment {args.augment} is not for {args.dataset}: {why}")


# Of what clients send and get.
OF_SEVERAL = ("weighting", "shared_init", "compressor", "dropout", "merge", "attack", "bn_every")


def _check_effects(args, explicit):
    """Refuse flags in `explicit` that change nothing beside the others, but for those that are at their defaults."""
    options = all_options()
    typed = [name for name in options if name in explicit and getattr(args, name) != options[name].default]
    for name, why in _without_effect(args).items():
        if name in typed:
            flag = f"--no-{name}" if getattr(args, name) is False else f"--{name}"
            raise InputError(f"{flag} has no effect {why}: leave it out")
        if name in ("bn", "bn_every"):  # from a file of flags that many runs share
            setattr(args, name, {"bn": _default_bn(args), "bn_every": 1}[name])
    chosen = {"attack", "attackers", "n_clients"} & set(explicit)
    if args.attack and chosen and round_half_up(args.attackers * args.n_clients) == 0:
        raise InputError(
            f"--attackers {args.attackers:g} of {args.n_clients} clients is no client: nobody would lie, raise it or "
            "leave --attack out"
        )


def _without_effect(args):
    """Return {flag: why} of flags that have no effect beside the others."""
    found = {}
    if said("merge", args.merge, "weighted") is False:
        found["weighting"] = f"with --merge {args.merge}, in which all clients count alike"
    if args.norm != "batch":
        found["bn_recalibrate"] = f"with --norm {args.norm}, which has no statistics to measure"
    if args.norm in ("none", "group"):
        found["bn_every"] = f"with --norm {args.norm}, which has no statistics to send"
        if args.bn == "eval_after_first_epoch":
            found["bn"] = f"with --norm {args.norm}, which has no statistics"
    elif args.bn == "frozen":
        found["bn_every"] = "with --bn frozen: no statistics are sent"
    if args.n_clients == 1:
        found["feature_noise"] = "with one client: it has the least noise, which is none"
    if args.local == "soups" and args.soup_selection == "uniform":
        found["holdout"] = "with --soup_selection uniform, which averages all models and judges none"
    if args.compressor == "none":
        found["stitch"] = "without a --compressor: all clients send all weights"
    if requirements(specs("algorithm")[args.algorithm]).get("n_clients") == (1,):
        why = f"with --algorithm {args.algorithm}, where all data are in one place and nothing is sent"
        found |= dict.fromkeys(OF_SEVERAL, why)
    return found


def _check_network(args):
    name, norms = args.model_name, said("model_name", args.model_name, "norms", NORMS)
    if args.pretrained and not said("model_name", name, "pretrained"):
        others = " or ".join(having("model_name", "pretrained"))
        raise InputError(f"--pretrained needs --model_name {others}: there are no published weights of the {name} here")
    if args.pretrained and args.norm != norms[0]:
        raise InputError(
            f"--pretrained needs --norm {norms[0]}: the published weights of {name} have no {args.norm} norm"
        )
    if args.weight_standardisation and args.norm == "none":
        raise InputError(
            "--weight_standardisation needs normalisation layers, such as --norm group: outputs would explode"
        )
    if args.weight_standardisation and args.pretrained:
        raise InputError("--weight_standardisation changes what published weights do: leave out --pretrained, or it")
    if args.norm not in norms:
        raise InputError(f"--norm {args.norm} is not for {name}, which needs {' or '.join(norms)}")


def _check_dataset(args):
    known = REGISTRIES["dataset"]()
    if args.dataset not in known and place_of(args.dataset, args.data_root) is None:
        raise InputError(
            f"--dataset {args.dataset}: is none of {', '.join(known)}, nor a folder of images or an .npz in "
            f"{os.path.abspath(args.data_root)}{did_you_mean(args.dataset, known)}{hint(args.dataset, args.data_root)}"
        )
    if args.shift == "feature" and args.dataset in known and not said("dataset", args.dataset, "domains"):
        raise one_domain(args.dataset, args.data_root)


def one_domain(name, root):
    """Return the InputError which says that the dataset `name` is not for --shift feature."""
    others = ", ".join(having("dataset", "domains"))
    return InputError(
        f"--shift feature: {name} has one domain; {others} have several, and so may a folder in {os.path.abspath(root)}"
    )


def _take_partition(args, given, explicit):
    """Let --partition and --dirichlet say the same, or only one of them: the other is then None.

    Raises InputError if both were given, but for one of them in a file of flags and the other typed: that one wins.
    """
    both = {name for name in ("partition", "dirichlet") if given.get(name) is not None}
    typed = both & set(explicit)
    if len(both) == 2 and len(typed) != 1:
        raise InputError(
            f"--partition {args.partition} and --dirichlet {args.dirichlet} both say how the data are split: give one"
        )
    if args.partition is None or (len(both) == 2 and typed == {"dirichlet"}):
        args.partition = None
        return
    try:
        spec, value = split_of(args.partition)
    except argparse.ArgumentTypeError as error:
        raise InputError(f"--partition: {error}") from None
    args.dirichlet = {"dirichlet": value, "iid": "iid"}.get(spec.name)
    args.partition = None if args.dirichlet is not None else args.partition


def _check_split(args, explicit):
    """Make --dirichlet and --partition None where --partition_file holds a split made by hand, and refuse them if they
    were typed.
    """
    if not args.partition_file or hand_made(args) is None:
        return
    for name in ("dirichlet", "partition"):
        if name in explicit:
            raise InputError(
                f"--{name} has no effect with --partition_file {args.partition_file}, a split made by hand: leave it "
                "out"
            )
    args.dirichlet = args.partition = None


def _check_paths(args):
    for name, option in all_options().items():
        if option.kind == "path" and getattr(args, name) == "":
            raise InputError(f"--{name}: the path is empty")
        if option.kind == "path" and "\0" in (getattr(args, name) or ""):
            raise InputError(f"--{name} {getattr(args, name)!r}: is no path, it has a NUL in it")
    if args.partition_file and not Path(args.partition_file).suffix == ".json":
        raise InputError(f"--partition_file {args.partition_file}: the file's name must end in .json")
    if args.init_weights and not Path(args.init_weights).is_file():
        raise InputError(f"--init_weights {os.path.abspath(args.init_weights)}: no such file")
    if args.save_weights and Path(args.save_weights).suffix.lower() == ".onnx":
        missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
        if missing:
            raise InputError(f"--save_weights {args.save_weights}: needs a package: pip install {' '.join(missing)}")
    for name in ("metrics_dir", "plots_dir", "checkpoint_dir", "save_clients"):
        if getattr(args, name) is not None:
            _check_folder(name, Path(getattr(args, name)))
    for name in ("results_file", "save_weights", "partition_file"):
        if getattr(args, name) is not None:
            path = split_path(args) if name == "partition_file" else Path(getattr(args, name))
            if name != "partition_file" or not path.exists():  # one that is there is read
                _check_file(name, path)
            _check_folder(name, path.parent)


def _check_file(name, path):
    try:
        files.check_writable(path)
    except InputError as error:
        raise InputError(f"--{name} {error}") from None


def _check_folder(name, folder):
    """Raise InputError unless `folder`, or the nearest parent of it that exists, is a folder that can be written."""
    folder = Path(os.path.abspath(folder))
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"--{name}: {folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"--{name}: the folder {folder} cannot be written")
