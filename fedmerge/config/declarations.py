"""What components declare of flags, held against the flags that there are: an author's slip is a line, not a default.

Nothing here imports torch.
"""

import argparse
import functools

from fedmerge.config.kinds import KINDS
from fedmerge.config.options import REGISTRIES, all_options, component_options
from fedmerge.declared import is_names
from fedmerge.errors import InputError, did_you_mean
from fedmerge.registry import AXES, CONTRACTS, SHELVES, find, plugin_versions, plugins, specs

TEXT, YES_OR_NO, FLAGS = (str, "a text"), (bool, "True or False"), (dict, "a dict {flag: values}")
# What the decorators may say, of which type, and that in words, besides title and paper.
WORDS = {
    "algorithm": {"requires": FLAGS, "server_residual": YES_OR_NO},
    "local": {"requires": FLAGS, "averages": YES_OR_NO, "one_run": YES_OR_NO},
    "compressor": {"requires": FLAGS, "server_residual": YES_OR_NO},
    "merge": {"requires": FLAGS, "needs": (object, ""), "uploads": (tuple, "a tuple of names"), "weighted": YES_OR_NO},
    "dataset": {
        **dict.fromkeys(("augment", "bundled", "domains"), YES_OR_NO),
        **dict.fromkeys(("label_set", "model", "never_augmented", "then"), TEXT),
        "pixels": (int, "a whole number"),
        "download": ((dict, str), "a dict {file: (address, MD5)}, nor the name of a dataset that has one"),
    },
    "partition": {"value": TEXT, "of": TEXT},
    "model_name": {"norms": (object, ""), **dict.fromkeys(("example", "library", "pretrained"), TEXT)},
}
FIRST = ("algorithm", "preset", "plugin", "out", "evaluate_clients")  # what is known before an algorithm's defaults are


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
    known = {"title": TEXT, "paper": TEXT, **WORDS[spec.shelf]}
    for word, said in spec.more.items():
        if word not in known:
            raise _slip(spec, f"registered with {word}=..., which means nothing here{did_you_mean(word, known)}")
        kind, in_words = known[word]
        if not isinstance(said, kind) or said == "":
            raise _slip(spec, f"{word}={said!r} is not {in_words}")
    for shelf, word in (("model_name", "model"), ("dataset", "label_set")):
        if word in spec.more and find(shelf, spec.more[word]) is None:
            raise _slip(spec, f"{word}={spec.more[word]!r} is none of --{shelf}")
    if spec.shelf == "merge":
        _check_statistics(spec)
    norms = all_options()["norm"].kind
    said = spec.more.get("norms", norms)
    if not isinstance(said, tuple) or not said or not all(norm in norms for norm in said):
        raise _slip(spec, f"norms={said!r} is no tuple of some of {', '.join(norms)}")
    if spec.shelf == "partition":
        _check_partition(spec)


def _check_partition(spec):
    kinds = spec.more["value"].split(",") if "value" in spec.more else []
    if not set(kinds) <= set(KINDS):
        raise _slip(spec, f"value={spec.more['value']!r} is none of {', '.join(KINDS)}, nor some with commas between")
    if spec.more.get("of", "classes") not in ("classes", "domains"):
        raise _slip(spec, f"of={spec.more['of']!r} is neither 'classes' nor 'domains'")
    value = tuple(1 for _ in kinds)
    try:
        spec.title.format(value=value if len(value) > 1 else 1)
    except (LookupError, ValueError):
        several = ", or {value[0]} where it has several," if len(value) > 1 else ","
        raise _slip(spec, f"title={spec.title!r} may hold {{value}}{several} and no other braces") from None


def _check_statistics(spec):
    needs = spec.more.get("needs")
    if needs != "all updates" and not (needs and is_names(needs)):
        raise _slip(spec, f"needs={needs!r} is neither a tuple of names, such as ('update',), nor 'all updates'")
    uploads = spec.more.get("uploads", ("fisher",))
    if not uploads or not is_names(uploads):
        raise _slip(spec, f"uploads={uploads!r} is no tuple of names, such as ('fisher',)")


def _check_flags(spec):
    """Refuse flags in `defaults`, `presets` and `requires` that do not exist, or could not be typed so."""
    if spec.shelf != "algorithm" and (spec.defaults or spec.presets):
        raise _slip(spec, "defaults and presets are an algorithm's: register one that has them")
    settings = [("defaults", spec.defaults), *((f"preset {name}", preset) for name, preset in spec.presets.items())]
    for what, values in settings:
        for flag, value in values.items():
            if flag in FIRST:
                raise _slip(spec, f"{what}: --{flag} is known before them: leave it out")
            _check_value(spec, what, flag, value)
    for flag, able in spec.more.get("requires", {}).items():
        if not isinstance(flag, str):
            raise _slip(spec, f"requires: {flag!r} is no flag")
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
    contract = CONTRACTS[option.axis]
    if isinstance(contract, tuple) and option.name in contract:
        raise _slip(spec, f"--{option.name} is called as {', '.join(contract)} are: another name", option.name)
    said = wrong(option, option.default)
    if said:
        raise _slip(spec, f"--{option.name}: its default: {said}", option.name)
    other, _, wanted = option.needs.partition("=")
    if other and other not in all_options():
        raise _slip(spec, f"--{option.name} needs --{other}, and there is no such flag", option.name)
    for text in wanted.split("|") if "=" in option.needs else ():
        said = _not_typed(all_options()[other], text)
        if said:
            raise _slip(spec, f"--{option.name} needs --{other} {text}: {said}", option.name)
    if other == option.name:
        raise _slip(spec, f"--{option.name} needs itself", option.name)


def _not_typed(option, text):
    """Return in words why `text` is none that a value of an Option is compared with, "" if it is one."""
    if option.kind == "flag":
        return "" if text in ("True", "False") else f"{text!r} is neither True nor False"
    kind = REGISTRIES[option.name]() if option.kind is tuple else option.kind
    if isinstance(kind, (tuple, list)):
        return wrong(option, text)
    try:
        value = str(KINDS[kind](text))
    except argparse.ArgumentTypeError as error:
        return str(error)
    return "" if value == text else f"is written {value}"


def wrong(option, value) -> str:
    """Return in words why an Option cannot have a value, "" if it can."""
    kind = REGISTRIES[option.name]() if option.kind is tuple else option.kind
    if kind == "flag":
        return "" if isinstance(value, bool) else f"{value!r} is neither True nor False"
    if value is None or (value == option.default and option.kind is tuple):
        return ""
    if isinstance(kind, (tuple, list)):
        return "" if value in kind else f"{value!r} is none of {', '.join(kind)}"
    try:
        typed = KINDS[kind](str(value))
    except argparse.ArgumentTypeError as error:
        return str(error)
    if isinstance(typed, str) != isinstance(value, str):
        return f"{value!r} is {'a text' if isinstance(value, str) else 'no text'}: write {typed!r}"
    return ""


def _slip(spec, text, option=None):
    file, line = spec.lines.get(option, (spec.file, spec.line))
    return InputError(f"{file}: line {line}: {spec.name}: {text}")
