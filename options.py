"""The flags of fedalg.py: a table of them, and what the algorithms, datasets and models register.

Nothing here imports torch, so that `--help` and refused command lines answer at once.
"""

import argparse
import ast
import functools
import math
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent

# --------------------------------------------------------------------------------------------------------------------
# What the other modules register, read from their source: importing them would import torch.


@functools.cache
def literal_keys(module, name):
    """Keys of the dict literal, or entries of the tuple of literals, that the top level of `module`.py assigns to
    `name`, as a list of str."""
    for node in _source(module).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
            return [ast.literal_eval(key) for key in getattr(node.value, "keys", None) or node.value.elts]
    raise LookupError(f"{module}.py assigns no {name}")


class Configurable:
    """What takes `options`, a literal dict name -> (default, kind, help[, needs]), added to those it inherits."""

    options = {}

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        inherited = {name: option for base in reversed(cls.__bases__) for name, option in _options_of(base).items()}
        cls.options = inherited | vars(cls).get("options", {})

    def __init__(self, **values):
        """Set an attribute for each option. Raises TypeError for one that there is not."""
        unknown = set(values) - set(self.options)
        if unknown:
            raise TypeError(f"{type(self).__name__} has no option {', '.join(sorted(unknown))}")
        for name, (default, *_) in self.options.items():
            setattr(self, name, values.get(name, default))


def _options_of(cls):
    return getattr(cls, "options", {})


def _dense(value):
    """Return the value; of a tensor that is a view with gaps, a copy without."""
    return value.contiguous() if hasattr(value, "contiguous") else value


class Stateful(Configurable):
    """What may keep something between rounds: the server in its attributes `own`, the clients in what `held` has.

    Only `merge` and `broadcast` change what the server keeps; clients may read it as they train, in any process.
    """

    own = ()  # names of attributes: tensors, numbers or None

    def held(self):
        """Return {kind: {client: tensor}}, the dicts themselves: what clients keep."""
        return {}

    def kept_length(self, name, layout):
        """Return how many numbers each tensor has that is kept as `name`, of `own` or `held`; None: any shape will do.

        A checkpoint with others is taken for damaged. layout: the model's models.Layout.
        """

    def forget(self, number):
        """Drop what client `number` keeps: its last update was not finite, and was not merged."""
        for of_client in self.held().values():
            of_client.pop(number, None)

    def state(self):
        """Return {name: tensor or {client: tensor}}: all that is kept between rounds."""
        own = {name: _dense(getattr(self, name)) for name in self.own if getattr(self, name) is not None}
        held = self.held().items()
        return own | {kind: {number: _dense(value) for number, value in of.items()} for kind, of in held}

    def snapshot(self):
        """Return what `check_unchanged` compares with."""
        return {name: (value, getattr(value, "_version", None)) for name, value in vars(self).items()}

    def check_unchanged(self, snapshot, while_, but=()):
        """Raise TypeError if an attribute, but those named in `but`, was set or changed in place since the snapshot.

        while_: in words, when. A checkpoint, or another process of the run, would not know of it.
        """
        for name, (value, version) in self.snapshot().items():
            before = snapshot.get(name, (self, None))
            if name not in but and (value is not before[0] or version != before[1]):
                raise TypeError(
                    f"{type(self).__name__} changed self.{name} {while_}: what the server keeps is named in `own` and "
                    "changed by merge, what clients keep lies in the dicts that `held` returns"
                )

    def load(self, state):
        """Take back what `state()` returned."""
        state = dict(state)
        for name in self.own:
            setattr(self, name, state.get(name))
        for kind, of_client in self.held().items():
            of_client.clear()
            of_client.update(state[kind])


@dataclass(frozen=True)
class Spec:
    """What the command line needs to know of an algorithm or a local method: a line of help and its own options."""

    summary: str
    options: dict  # name -> (default, kind, help[, "other_option=value" that it needs])
    defaults: dict  # flag -> its default for this algorithm, where that is another than for the rest
    presets: dict  # name -> {flag: value}


def algorithm_specs():
    """Return {name: Spec} for every class of agg_utils.py that stands under `@register("name")`."""
    return _specs("agg_utils", "register")


def local_specs():
    """Return {name: Spec} for every class of local_methods.py that stands under `@local_method("name")`."""
    return _specs("local_methods", "local_method")


@functools.cache
def _specs(module, decorator):
    classes = {node.name: node for node in _source(module).body if isinstance(node, ast.ClassDef)}

    def literal(node, attribute):
        """Return the dict that the class body assigns to `attribute`, {} if it does not."""
        for statement in node.body:
            if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", None) == attribute:
                return ast.literal_eval(statement.value)
        return {}

    def options_of(node):
        bases = [classes[base.id] for base in reversed(node.bases) if getattr(base, "id", None) in classes]
        return {k: v for base in bases for k, v in options_of(base).items()} | literal(node, "options")

    specs = {}
    for node in classes.values():
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and call.func.id == decorator:
                summary = (ast.get_docstring(node) or "").split("\n")[0]
                own = (literal(node, attribute) for attribute in ("defaults", "presets"))
                specs[ast.literal_eval(call.args[0])] = Spec(summary, options_of(node), *own)
    return specs


@functools.cache
def _source(module):
    return ast.parse((HERE / f"{module}.py").read_text(encoding="utf-8"))


# --------------------------------------------------------------------------------------------------------------------
# Kinds of values


LARGEST, TINIEST = 3e38, 1e-37  # what float32 holds


def _number(convert, accepts, wanted):
    """Return an argparse type: `convert` the text, refuse what `accepts` does not, and say what is `wanted`."""

    def parse(text):
        with suppress(ValueError):
            value = convert(text)
            if math.isfinite(value) and (value == 0 or TINIEST <= abs(value) <= LARGEST) and accepts(value):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")

    return parse


def _dirichlet(text):
    if text.lower() in ("nan", "iid"):
        return "iid"
    return _number(float, lambda a: a > 0, "a positive number, nan or iid")(text)


def _workers(text):
    return text if text == "auto" else _number(int, lambda n: 1 <= n <= 1024, "auto or a number from 1 to 1024")(text)


KINDS = {
    "count": _number(int, lambda n: 1 <= n <= 10**6, "a whole number from 1 to 1000000"),
    "integer": _number(int, lambda n: 0 <= n < 2**63, "a whole number from 0 to 2^63 - 1"),
    "positive": _number(float, lambda x: x > 0, "a positive number"),
    "nonnegative": _number(float, lambda x: x >= 0, "a number of at least 0"),
    "share": _number(float, lambda x: 0 < x <= 1, "a share in (0, 1]"),
    "decay": _number(float, lambda x: 0 <= x < 1, "a number in [0, 1)"),
    "half": _number(float, lambda x: 0 <= x < 0.5, "a number in [0, 0.5)"),
    "dirichlet": _dirichlet,
    "size": _number(int, lambda n: n % 4 == 0 and 8 <= n <= 512, "a multiple of 4 from 8 to 512"),
    "bits": _number(int, lambda n: n in (32, 16, 8, 4, 1), "32, 16, 8, 4 or 1"),
    "workers": _workers,
    "path": str,
    "dataset": str,
}


@dataclass(frozen=True)
class Option:
    """One flag. `kind` names an entry of KINDS, is a tuple of choices, or is "flag" (--x / --no-x)."""

    name: str
    default: object
    kind: object
    help: str
    named: bool = True  # whether it changes the result, and so belongs into the run's name
    needs: str = ""  # "option=value" or "option=value|value": has no effect otherwise; "option": if at its default

    @property
    def needs_in_words(self):
        return f"--{self.needs.replace('=', ' ').replace('|', ' or ')}"


OPTIONS = {
    "experiment": [
        Option("algorithm", "fedavg", tuple, "how clients train and the server merges"),
        Option("preset", None, tuple, "a combination of the algorithm's flags by its name; flags given as well win"),
        Option("dataset", "DIGITS", "dataset", "DIGITS needs no download"),
        Option("image_size", None, "size", "resize images to so many pixels (default: as they are)"),
        Option("model_name", None, tuple, "default: cnn for DIGITS, else resnet18"),
        Option("seed", 0, "integer", "seed of every random draw"),
        Option("shift", "label", ("label", "feature"), "clients differ in their classes, or each has its own domain"),
        Option("dirichlet", "iid", "dirichlet", "concentration of the split of each class; nan or iid = IID"),
        Option("n_clients", 20, "count", "clients that hold the training data"),
        Option("participation", 0.2, "share", "share of the clients sampled each round"),
        Option("n_epochs", 100, "count", "communication rounds"),
        Option("min_client_samples", 1, "integer", "samples every client must hold; those with 0 never take part"),
        Option("partition_file", None, "path", "split to use, {seed} in its name is the run's; written if not there"),
    ],
    "local training": [
        Option("local", "sgd", tuple, "how a client makes its model of the one that it received"),
        Option("n_client_epochs", 5, "count", "epochs over a client's data per round", needs="local=sgd|swa|swad|moon"),
        Option("local_steps", None, "count", "end a client's round, or each model of a pool, after so many steps"),
        Option("batch_size", 64, "count", "samples per step"),
        Option("local_optimizer", "sgd", ("sgd", "adam"), "the clients' optimiser"),
        Option("lr", None, "positive", "its learning rate; default: 0.01 for sgd, 0.0005 for adam"),
        Option("momentum", 0.9, "decay", "momentum of SGD, reset every round", needs="local_optimizer=sgd"),
        Option("weight_decay", 0.0, "nonnegative", "L2 decay of all trainable weights"),
        Option("lr_decay", 1.0, "share", "factor on the learning rate after each round"),
        Option("clip_norm", None, "positive", "clip the norm of every gradient here (default: off)"),
        Option(
            "augment",
            None,
            ("none", "standard"),
            "standard = crop with padding 4 and flip; default: that for the CIFARs and TinyImageNet, none for others",
        ),
        Option(
            "bn_recalibrate",
            False,
            "flag",
            "measure BatchNorm's statistics anew where a client averages models",
            needs="local=lss|swa|swad|soups",
        ),
        Option("precision", "float32", ("float32", "bf16"), "of the forward and backward pass"),
    ],
    "model": [
        Option("norm", None, ("batch", "group", "none"), "default: batch for ResNets, none for the cnn"),
        Option("pretrained", False, "flag", "start from torchvision's ImageNet weights (ResNets)"),
        Option("init_weights", None, "path", "start from a file that --save_weights wrote"),
    ],
    "server": [
        Option("weighting", "samples", ("samples", "uniform"), "weights of the clients in the average"),
        Option("eval_every", 1, "count", "rounds between evaluations; the last is always evaluated"),
        Option("eval_train", False, "flag", "evaluate on all training data too, instead of what clients saw"),
    ],
    "wire": [
        Option(
            "value_bits", 32, "bits", "bits of a value sent; below 16 with a scale per 1,024 values, rounded at random"
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
            "GiB that updates may take which wait to be merged: median, trimmed_mean and krum need all of a round, and "
            "each of several processes those that it makes",
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
    "files": [
        Option("data_root", "./data", "path", "folder of the datasets", named=False),
        Option(
            "out",
            None,
            "path",
            "folder of metrics, plots, checkpoints and results.csv, where the next four flags do not say otherwise",
            named=False,
        ),
        Option("metrics_dir", "metrics", "path", "folder for <run>_metrics.csv and <run>.json", named=False),
        Option("plots_dir", "plots", "path", "folder for the figures of each run", named=False),
        Option("results_file", "results.csv", "path", "one row per finished run", named=False),
        Option("checkpoint_dir", "checkpoints", "path", "folder from which a run that was ended goes on", named=False),
        Option(
            "checkpoint_every",
            None,
            "count",
            "rounds between checkpoints (default: so that they take 1 % of the time, 10 minutes at most)",
            named=False,
        ),
        Option("fresh", False, "flag", "do not go on from a checkpoint, but start over", named=False),
        Option("save_weights", None, "path", "write the final model here, for --init_weights", named=False),
        Option("save_clients", None, "path", "write each client's personal part here, as payload files", named=False),
        Option(
            "part_sparsity",
            None,
            "share",
            "share of the weights in such a part (default: what the algorithm sends)",
            named=False,
            needs="save_clients",
        ),
        Option(
            "part_bits",
            None,
            "bits",
            "bits of a value in it (default: --value_bits)",
            named=False,
            needs="save_clients",
        ),
        Option(
            "evaluate_clients",
            None,
            "path",
            "train nothing: judge what --save_clients left in this folder",
            named=False,
        ),
        Option("overwrite", False, "flag", "run again what is already finished", named=False),
        Option("quiet", False, "flag", "print only the last line", named=False),
    ],
}
ALIASES = {"rounds": "n_epochs", "keep": "sparsity", "prox_mu": "prox_momentum"}  # what the field calls them
REGISTRIES = {
    "algorithm": lambda: sorted(algorithm_specs()),
    "preset": lambda: sorted({preset for spec in algorithm_specs().values() for preset in spec.presets}),
    "dataset": lambda: literal_keys("data", "DATASETS"),
    "model_name": lambda: literal_keys("models", "MODELS"),
    "local": lambda: sorted(local_specs()),
}


@functools.cache
def algorithm_options():
    """Return {option name: (Option, [algorithms that have it])} over all registered algorithms."""
    return _own_options(algorithm_specs())


@functools.cache
def local_options():
    """Return {option name: Option} over all registered local methods; each needs --local to be one that has it."""
    found = _own_options(local_specs())
    return {name: replace(option, needs="local=" + "|".join(owners)) for name, (option, owners) in found.items()}


def _own_options(specs):
    found = {}
    for owner, spec in specs.items():
        for name, (default, kind, text, *needs) in spec.options.items():
            option = Option(name, default, kind, text, needs=needs[0] if needs else "")
            known, owners = found.setdefault(name, (option, []))
            if known != option:
                raise ValueError(f"{owner} and {owners[0]} declare --{name} differently")
            owners.append(owner)
    return found


def all_options():
    """Return {name: Option} of every flag, those of the algorithms and of the local methods included."""
    own = {name: option for name, (option, _) in algorithm_options().items()}
    return {o.name: o for group in OPTIONS.values() for o in group} | local_options() | own
