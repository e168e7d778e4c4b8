"""What components declare of flags, held against the flags that there are: an author's slip is a line, not a default.

Nothing here imports torch.
"""

import argparse
import functools
import re

from fedmerge.config.kinds import KINDS
from fedmerge.config.options import REGISTRIES, all_options, component_options
from fedmerge.errors import InputError, did_you_mean
from fedmerge.registry import AXES, SHELVES, find, plugin_versions, plugins, specs

# What the decorators may say, besides title and paper.
WORDS = {
    "algorithm": ("requires", "server_residual"),
    "local": ("requires", "averages", "one_run"),
    "compressor": ("requires", "server_residual"),
    "merge": ("requires", "needs", "weighted"),
    "dataset": ("augment", "bundled", "domains", "download", "label_set", "model", "never_augmented", "pixels", "then"),
    "partition": ("value",),
    "model_name": ("example", "library", "norms", "pretrained"),
}


def check_declarations() -> None:
    """Raise InputError, with file and line, for what a component declares of a flag that is not so."""
    _check(plugin_versions())


@functools.cache
def _check(versions):
    for shelf in SHELVES:
        for spec in specs(shelf).values():
            _check_words(spec)
    for axis in AXES:
        for spec in specs(axis).values():
            _check_flags(spec)
    used = {spec.file for shelf in SHELVES for spec in specs(shelf).values()}
    for path in plugins():
        if not any(file.is_relative_to(path) for file in used):
            raise InputError(f"--plugin {path}: registers nothing")
    for option in component_options().values():
        _check_option(option)


def _check_words(spec):
    """Refuse what the decorator says that nobody would read."""
    family = "/?" if spec.shelf == "model_name" else ""
    if not isinstance(spec.name, str) or not re.fullmatch(rf"[A-Za-z0-9][\w-]*{family}", spec.name, re.ASCII):
        raise _slip(spec, f"the name {spec.name!r} is none: letters, digits, _ and -, since files are called so")
    known = ("title", "paper", *WORDS[spec.shelf])
    for word in spec.more:
        if word not in known:
            raise _slip(spec, f"registered with {word}=..., which means nothing here{did_you_mean(word, known)}")
    for shelf, word in (("model_name", "model"), ("dataset", "label_set")):
        if word in spec.more and find(shelf, spec.more[word]) is None:
            raise _slip(spec, f"{word}={spec.more[word]!r} is none of --{shelf}")
    norms = all_options()["norm"].kind
    if not set(spec.more.get("norms", norms)) <= set(norms) or not isinstance(spec.more.get("norms", ()), tuple):
        raise _slip(spec, f"norms={spec.more['norms']!r} is no tuple of some of {', '.join(norms)}")
    if spec.more.get("value") not in (None, *KINDS):
        raise _slip(spec, f"value={spec.more['value']!r} is none of {', '.join(KINDS)}")


def _check_flags(spec):
    """Refuse flags in `defaults`, `presets` and `requires` that do not exist, or could not be typed so."""
    if spec.shelf != "algorithm" and (spec.defaults or spec.presets):
        raise _slip(spec, "defaults and presets are an algorithm's: register one that has them")
    settings = [("defaults", spec.defaults), *((f"preset {name}", preset) for name, preset in spec.presets.items())]
    for what, values in settings:
        for flag, value in values.items():
            _check_value(spec, what, flag, value)
    for flag, able in spec.more.get("requires", {}).items():
        if isinstance(able, str) and able in WORDS.get(flag, ()):
            continue
        if not isinstance(able, tuple) or not able:
            raise _slip(spec, f"requires of --{flag} {able!r}: is no tuple of values, such as ('sgd',)")
        for value in able:
            _check_value(spec, "requires", flag, value)


def _check_value(spec, what, flag, value):
    option = all_options().get(flag)
    if option is None:
        raise _slip(spec, f"{what}: there is no flag --{flag}{did_you_mean(flag, all_options(), '--')}")
    said = wrong(option, value)
    if said:
        raise _slip(spec, f"{what}: --{flag}: {said}")


def _check_option(option):
    """Refuse the default of a component's Option, or what it needs, if that could not be typed."""
    spec = specs(option.axis).get(option.owners[0]) if option.axis else None
    if spec is None:
        return
    said = wrong(option, option.default)
    if said:
        raise _slip(spec, f"--{option.name}: its default: {said}", option.name)
    other = option.needs.partition("=")[0]
    if other and other not in all_options():
        raise _slip(spec, f"--{option.name} needs --{other}, and there is no such flag", option.name)


def wrong(option, value) -> str:
    """Return in words why an Option cannot have a value, "" if it can."""
    kind = REGISTRIES[option.name]() if option.kind is tuple else option.kind
    if value is None or (value == option.default and option.kind is tuple):
        return ""
    if kind == "flag":
        return "" if isinstance(value, bool) else f"{value!r} is neither True nor False"
    if isinstance(kind, (tuple, list)):
        return "" if value in kind else f"{value!r} is none of {', '.join(kind)}"
    try:
        KINDS[kind](str(value))
    except argparse.ArgumentTypeError as error:
        return str(error)
    return ""


def _slip(spec, text, option=None):
    file, line = spec.lines.get(option, (spec.file, spec.line))
    return InputError(f"{file}: line {line}: {spec.name}: {text}")
