"""The table of flags that every run has, and those of the components.

Nothing here imports torch.
"""

import functools
from dataclasses import replace

from fedmerge.config.file_options import FILES
from fedmerge.config.kinds import KINDS
from fedmerge.config.option import Option
from fedmerge.config.option_help import (
    augment_help,
    averaging,
    cohort_help,
    dataset_help,
    model_help,
    no_pool,
    norm_help,
    partition_help,
    pretrained_help,
)
from fedmerge.errors import InputError
from fedmerge.registry import SHELVES, WITH_OPTIONS, Names, plugin_versions, specs

OPTIONS = {
    "experiment": [
        Option("algorithm", "fedavg", tuple, "how clients train and the server merges"),
        Option("preset", None, tuple, "a combination of the algorithm's flags by its name; flags given as well win"),
        Option("dataset", "DIGITS", "dataset", dataset_help),
        Option("validation", True, "flag", "keep a tenth of the training images for validation; else train on all"),
        Option(
            "image_size",
            None,
            "size",
            "pixels that the network sees: larger images are shrunk, smaller ones enlarged batch by batch (default: as "
            "they are)",
        ),
        Option("normalise", True, "flag", "shift and scale images to mean 0 and deviation 1; else pixels are 0 to 1"),
        Option("model_name", None, tuple, model_help),
        Option("seed", 0, "integer", "seed of every random draw"),
        Option("shift", "label", ("label", "feature"), "clients differ in their classes, or each has its own domain"),
        Option(
            "feature_noise",
            0.0,
            "nonnegative",
            "deviation of the noise on the last client's images, as a share of the brightest value; the first has none",
        ),
        Option("dirichlet", "iid", "dirichlet", "concentration of the split of each class; nan or iid = IID"),
        Option("partition", None, "partition", partition_help),
        Option("n_clients", 20, "count", "clients that hold the training data"),
        Option("participation", 0.2, "share", "share of the clients sampled each round"),
        Option("n_epochs", 100, "count", "communication rounds"),
        Option("min_client_samples", 1, "integer", "samples every client must hold; those with 0 never take part"),
        Option("partition_file", None, "path", "split to use, {seed} in its name is the run's; written if not there"),
    ],
    "local training": [
        Option("local", "sgd", tuple, "how a client makes its model of the one that it received"),
        Option("n_client_epochs", 5, "count", "epochs over a client's data per round", needs=no_pool),
        Option("local_steps", None, "count", "end a client's round, or each model of a pool, after so many steps"),
        Option("batch_size", 64, "count", "samples per step"),
        Option("local_optimizer", "sgd", ("sgd", "adam"), "the clients' optimiser"),
        Option("lr", None, "positive", "its learning rate; default: 0.01 for sgd, 0.0005 for adam"),
        Option("momentum", 0.9, "decay", "momentum of SGD, reset every round", needs="local_optimizer=sgd"),
        Option("weight_decay", 0.0, "nonnegative", "L2 decay of all trainable weights"),
        Option("lr_decay", 1.0, "share", "factor on the learning rate after each round"),
        Option("clip_norm", None, "positive", "clip the norm of every gradient here (default: off)"),
        Option("augment", None, ("none", "standard", "reflect"), augment_help),
        Option(
            "bn_recalibrate",
            False,
            "flag",
            "measure BatchNorm's statistics anew where a client averages models",
            needs=averaging,
        ),
        Option(
            "bn",
            None,
            ("train", "frozen", "eval_after_first_epoch"),
            "BatchNorm's statistics: measured as clients train, or kept as they are and not sent, or, by accident in "
            "the code of LSS, measured in the first epoch only; default: frozen with --trainable head, bias or lora, "
            "else train",
        ),
        Option("precision", "float32", ("float32", "bf16"), "of the forward and backward pass"),
    ],
    "model": [
        Option("norm", None, ("batch", "group", "none", "own"), norm_help),
        Option(
            "weight_standardisation",
            False,
            "flag",
            "convolutions work with weights of mean 0 and deviation 1 for each output; for --norm group or batch",
        ),
        Option("pretrained", False, "flag", pretrained_help),
        Option("init_weights", None, "path", "start from a file that --save_weights wrote, or a safetensors file"),
        Option(
            "head_init",
            None,
            ("ncm", "cof", "ridge"),
            "make the first head of the clients' features, untrained: by class means, these over the covariance that "
            "they tell of, or least squares (default: as the network begins)",
        ),
        Option(
            "head_ridge",
            0.1,
            "nonnegative",
            "share of the mean of its diagonal that is added to it, in the matrix that is inverted for the head",
            needs="head_init=cof|ridge",
        ),
        Option(
            "head_bits",
            32,
            "bits",
            "bits of a number that is sent for the first head, but of counts and of Gram matrices, which are exact",
            needs="head_init",
        ),
        Option(
            "trainable",
            "all",
            ("all", "head", "norms", "bias", "lora"),
            "what is trained, and so sent: all, or the head (the last layer) alone, or with it normalisation layers, "
            "the biases, or low-rank adapters",
        ),
        Option("lora_rank", 8, "count", "rank of the adapters", needs="trainable=lora"),
        Option("lora_alpha", 16.0, "positive", "what they make is multiplied by this / rank", needs="trainable=lora"),
        Option(
            "lora_layers",
            None,
            "regex",
            "regular expression, looked for in names of linear and convolutional layers: these have adapters (default: "
            "all but the head)",
            needs="trainable=lora",
        ),
        Option(
            "lora_merge",
            "factors",
            ("factors", "products"),
            "average the factors B and A each, or the products B A, cut back to their rank (FlexLoRA)",
            needs="trainable=lora",
        ),
        Option("lora_freeze_a", False, "flag", "train the factors B of B A only (FFA-LoRA)", needs="trainable=lora"),
    ],
    "server": [
        Option("merge", "mean", tuple, "how the server merges what arrives"),
        Option("weighting", "samples", ("samples", "uniform"), "weights of the clients in the average"),
        Option("eval_every", 1, "count", "rounds between evaluations; the last is always evaluated"),
        Option("eval_train", False, "flag", "evaluate on all training data too, instead of what clients saw"),
    ],
    "wire": [
        Option("compressor", "none", tuple, "what of an update is sent"),
        Option(
            "value_bits",
            32,
            "bits",
            "bits of a value sent; below 16 with scales per 1,024 values; 8 and 4 are rounded at random",
        ),
        Option(
            "downlink",
            "delta",
            ("delta", "dense", "sparse", "individual"),
            "send what changed, all, each round's largest changes, or to each client the largest of what it lacks",
        ),
        Option(
            "down_sparsity",
            0.01,
            "share",
            "share of the weights that the server sends",
            needs="downlink=sparse|individual",
        ),
        Option(
            "down_bits",
            None,
            "bits",
            "bits of a value that the server sends (default: --value_bits)",
            needs="downlink=sparse|individual",
        ),
        Option(
            "shared_init",
            True,
            "flag",
            "nobody downloads the initial model, since the seed or a public file gives it; with --no-shared_init a "
            "client's first download counts",
        ),
        Option(
            "bn_every",
            1,
            "count",
            "rounds between those in which BatchNorm's statistics are sent, of which steps make no use; the last round "
            "has them always",
        ),
        Option("wire", "size", ("size", "real"), "count the bytes, or make them, read them and compare", named=False),
    ],
    "faults": [
        Option("attack", None, ("sign_flip", "noise", "label_flip"), "what clients that lie do (default: none lies)"),
        Option("attackers", 0.2, "share", "share of the clients that lie, always the same ones", needs="attack"),
        Option(
            "attack_strength",
            5.0,
            "positive",
            "size of the lie over that of the client's true update",
            needs="attack=sign_flip|noise",
        ),
        Option("dropout", 0.0, "decay", "share of the sampled clients that download, but whose update never arrives"),
        Option(
            "on_nan",
            "stop",
            ("stop", "skip"),
            "when a client's loss or update is not finite: end the run, or leave this update out",
        ),
    ],
    "machine": [
        Option("device", "auto", ("auto", "cpu", "cuda", "mps"), "auto = cuda, else mps, else cpu", named=False),
        Option(
            "parallel_clients",
            "auto",
            "workers",
            "clients that train at once; auto = one per CPU thread, 8 at most, or 1 on a GPU; always 1 for networks "
            "that draw as they train, with dropout or stochastic depth",
            named=False,
        ),
        Option(
            "max_cohort_memory",
            4.0,
            "positive",
            cohort_help,
            named=False,
        ),
        Option(
            "max_state_memory",
            None,
            "positive",
            "GiB that may be taken by what clients keep between rounds, such as residuals (default: what is free)",
            named=False,
        ),
        Option(
            "capture",
            False,
            "flag",
            "replay CUDA graphs for steps of plain SGD (no pull, no clipping, one run a client); not yet measured",
            named=False,
            needs="local_optimizer=sgd",
        ),
        Option("deterministic", False, "flag", "only deterministic GPU kernels (slower)", named=False),
    ],
    "files": FILES,
}
ALIASES = {"rounds": "n_epochs", "keep": "sparsity", "prox_mu": "prox_momentum"}  # what the field calls them
# Flags that are no settings, and arguments of calls.
RESERVED = ("config", "recipe", "help", "self", "callbacks", *ALIASES)
REGISTRIES = {
    **{shelf: functools.partial(Names, shelf) for shelf in SHELVES},
    "preset": lambda: sorted({preset for spec in specs("algorithm").values() for preset in spec.presets}),
}
# What belongs to no component, but stands behind the compressors' own in the names of runs.
FEEDBACK = (
    Option(
        "residual",
        "none",
        ("none", "client", "server"),
        "who keeps what is left out for later rounds: clients what they did not send, or (las, topk, stc) the server "
        "what it did not apply, as it then changes no more than --sparsity a round",
    ),
    Option(
        "residual_momentum",
        0.0,
        "decay",
        "momentum of a client's updates from round to round",
        needs="residual=client",
    ),
)


def component_options():
    """Return {name: Option} over all components that have any. Raises InputError, with file and line, for a mistake."""
    return _component_options(plugin_versions())


@functools.cache
def _component_options(plugins):
    found, general = {}, dict.fromkeys(RESERVED, "every run")
    general |= {option.name: "every run" for group in OPTIONS.values() for option in group}
    general |= {option.name: "every compressor" for option in FEEDBACK}
    for axis in WITH_OPTIONS:
        for owner, spec in sorted(specs(axis).items()):
            for name, declared in spec.options.items():
                place = "{}: line {}".format(*spec.lines[name])
                option = _option(name, declared, axis, place)
                known = found.get(name, option)
                if name in general or replace(known, owners=()) != option:
                    other = general.get(name) or f"--{known.axis} {known.owners[0]}"
                    raise InputError(f"{place}: {owner} declares --{name} otherwise than {other}: another name")
                found[name] = replace(option, owners=(*known.owners, owner))
        if axis == "compressor":
            found |= {option.name: option for option in FEEDBACK}
    return found


def _option(name, declared, axis, place):
    """Return the Option that a component declares. Raises InputError if that is none."""
    if not isinstance(declared, tuple) or len(declared) not in (3, 4) or not isinstance(declared[2], str):
        raise InputError(f"{place}: --{name} is not (default, kind, help) or (default, kind, help, needs)")
    default, kind, text, *needs = declared
    of_choices = isinstance(kind, tuple) and kind and all(isinstance(choice, str) and choice for choice in kind)
    if not of_choices and not (isinstance(kind, str) and kind in ("flag", *KINDS)):
        raise InputError(f"{place}: --{name} is of the kind {kind!r}: {', '.join(KINDS)}, flag, or a tuple of choices")
    if not all(isinstance(need, str) for need in needs):
        raise InputError(f"{place}: --{name} needs {needs[0]!r}, which is no text such as 'stitch=prior'")
    return Option(name, default, kind, text, needs=needs[0] if needs else "", axis=axis)


def all_options():
    """Return {name: Option} of every flag, those of components included. It is one dict for all: leave it as it is."""
    return _all_options(plugin_versions())


@functools.cache
def _all_options(versions):
    general = [option for group in OPTIONS.values() for option in group]
    return {o.name: replace(o, needs=o.needs()) if callable(o.needs) else o for o in general} | component_options()


def acts(option, settings):
    """Tell whether an Option has an effect beside the others in {name: value}."""
    if option.axis and not option.is_of(settings.get(option.axis, all_options()[option.axis].default)):
        return False
    other, _, wanted = option.needs.partition("=")
    if not other:
        return True
    value = settings.get(other, all_options()[other].default)
    return str(value) in wanted.split("|") if wanted else value != all_options()[other].default
