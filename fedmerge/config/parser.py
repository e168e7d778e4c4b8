"""The command line: every flag, files of flags, and a line for each error.

Nothing here imports torch, so that `--help` and refused command lines answer at once.
"""

import argparse
import contextlib
import os
import re
import sys

from fedmerge.config.completion import complete
from fedmerge.config.declarations import check_declarations
from fedmerge.config.help_topics import HelpByTopic, component_lines
from fedmerge.config.kinds import KINDS, VALUE_BITS
from fedmerge.config.options import ALIASES, OPTIONS, REGISTRIES, all_options, component_options
from fedmerge.config.own_data import place_of
from fedmerge.config.resolve import resolve, spread
from fedmerge.config.settings_files import words_in
from fedmerge.declared import described
from fedmerge.errors import InputError, did_you_mean
from fedmerge.python_source import HERE
from fedmerge.registry import SHELVES, one_look, specs, use_plugins

RECIPES = sorted(path.stem for path in (HERE / "recipes").glob("*.txt"))
BITS = f"{{{','.join(map(str, VALUE_BITS))}}}"
METAVARS = {  # of a kind of option, else X
    **{"path": "PATH", "count": "N", "integer": "N", "size": "N", "bits": BITS},
    **{"partition": "NAME:VALUE", "dataset": "NAME"},
}


class _Parser(argparse.ArgumentParser):
    """One line per error, exit status 2; no flag is guessed from its first letters."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message):
        unknown = re.search(r"unrecognized arguments: --(\w+)", message)
        if unknown:
            near = {"epochs": "rounds", "local_epochs": "n_client_epochs", "mu": "prox_mu"}
            message += did_you_mean(near.get(unknown[1], unknown[1]), [*all_options(), *ALIASES], "--")
        choice = re.search(r"invalid choice: '(\S+)' \(choose from (.*)\)", message)
        if choice:
            message += did_you_mean(choice[1], re.findall(r"[\w.-]+", choice[2]))
        sys.stderr.write(f"{self.prog}: error: {' '.join(message.split())}\n")
        raise SystemExit(2)


def build_parser(prog="fedalg.py"):
    """Return the parser of `fedalg.py`. A flag that was not given is absent from what it returns.

    Raises InputError, with file and line, for what a component declares that cannot be.
    """
    check_declarations()
    parser = _Parser(
        prog=prog,
        description="Simulated federated learning: local training, merging, evaluation, one CSV row a round.",
        epilog="\n".join(component_lines()),
        argument_default=argparse.SUPPRESS,
        formatter_class=_Help,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action=HelpByTopic, help=HelpByTopic.__doc__)
    parser.add_argument(
        "--config",
        "--like",
        metavar="FILE",
        help="file of flags, one a line, TOML, or the .json of a run that is to be made again; the command line wins",
    )
    parser.add_argument("--recipe", choices=RECIPES, help="the flags of a published setting; all others win")
    known = all_options()
    for title, options in OPTIONS.items():
        group = parser.add_argument_group(title)
        for option in options:
            _add(group, known[option.name], option.help)
    for title, options in _by_owners().items():
        group = parser.add_argument_group(title)
        for option in options:
            _add(group, option, option.help)
    return parser


def _by_owners():
    """Return {title: [Option]} of the options that components have, by who has them."""
    groups = {}
    for option in component_options().values():
        title = f"only with {option.owners_in_words}" if option.axis else "what is not sent"
        groups.setdefault(title, []).append(option)
    return groups


class _Help(argparse.HelpFormatter):
    """A line a component at the end, as it is."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=34, width=118)

    def _fill_text(self, text, width, indent):
        return text if "\n" in text else super()._fill_text(text, width, indent)


def _add(group, option, text):
    text = text() if callable(text) else text
    if option.needs:
        text += f" (with {option.needs_in_words})"
    if option.default is not None and option.kind != "flag":
        text += f" [{option.default}]"
    text = text.replace("%", "%%")  # argparse fills in what follows a single one
    flags = [f"--{name}" for name in (option.name, *(a for a, name in ALIASES.items() if name == option.name))]
    if option.kind == "flag":
        group.add_argument(*flags, action=argparse.BooleanOptionalAction, help=text)
    elif option.kind is tuple or isinstance(option.kind, tuple):
        choices = REGISTRIES[option.name]() if option.kind is tuple else option.kind
        group.add_argument(*flags, choices=choices, help=text)
    else:
        metavar = METAVARS.get(option.kind, "X")
        action = group.add_argument(*flags, type=KINDS[option.kind], metavar=metavar, help=text)
        if option.name in SHELVES:  # for shells that complete
            action.completer = lambda **_: [spec.shown for spec in specs(option.name).values()]


@one_look()
def parse_args(argv=None):
    """Parse and check the command line; return a Namespace with every setting resolved.

    Exits with status 2 and one line on standard error if a flag is unknown, out of range or contradicts another.
    Needs no torch and writes nothing.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        _take_plugins(argv)
        parser = build_parser()
    except InputError as error:
        _Parser(prog="fedalg.py").error(str(error))
    given = complete(parser).parse_args(argv)
    of_files, named = _of_files(parser, vars(given)), vars(given).keys() - {"config", "recipe"}
    try:
        return resolve(of_files | spread({name: vars(given)[name] for name in named}), explicit=named)
    except InputError as error:
        parser.error(str(error))


def typed_settings(given):
    """Return the resolved Namespace of settings {name: value} as somebody would type them, aliases included.

    Raises InputError for whatever the command line refuses.
    """
    given = {name: value for name, value in given.items() if value is not None}
    twice = [name for alias, name in ALIASES.items() if {alias, name} <= given.keys()]
    if twice:
        raise InputError(f"{twice[0]} is there by two names: give one")
    given = {ALIASES.get(name, name): _plain(value, name) for name, value in given.items()}
    plugins, path = _paths(given.pop("plugin", ()), "plugin"), given.pop("config", None)
    recipe = given.pop("recipe", None)
    if recipe not in (None, *RECIPES):
        raise InputError(f"recipe: {recipe!r} is none of {', '.join(RECIPES)}{did_you_mean(str(recipe), RECIPES)}")
    of_config = [] if path is None else [f"--config={_path(path, 'config')}"]
    _take_plugins([*(f"--plugin={plugin}" for plugin in plugins), *of_config])
    given |= {"plugin": plugins[-1]} if plugins else {}  # of several --plugin, the last is the setting
    unknown = [name for name in given if name not in all_options()]
    if unknown:
        raise InputError(f"there is no setting {unknown[0]}{did_you_mean(unknown[0], [*all_options(), *ALIASES])}")
    parser = build_parser()
    parser.error = _refuse
    of_files = _of_files(parser, {"config": path, "recipe": recipe})
    return resolve(of_files | spread(vars(parser.parse_args(_typed(given)))), explicit=set(given))


def _typed(given):
    """Return the words with which somebody types the settings {name: value}. Raises InputError for no truth value."""
    words = []
    for name, value in given.items():
        flag = all_options()[name].kind == "flag"
        if flag and not isinstance(value, bool):
            raise InputError(f"{name}: {value!r} is neither True nor False")
        if all_options()[name].kind == "path":
            value = _path(value, name)
        words.append((f"--{name}" if value else f"--no-{name}") if flag else f"--{name}={value}")
    return words


def _plain(value, name):
    """Return the number, truth value or text that a value of NumPy's or torch's is, any other value as it is.

    Raises InputError for one of several numbers, or of none.
    """
    if not hasattr(value, "item"):
        return value
    try:
        return value.item()
    except (RuntimeError, TypeError, ValueError):
        raise InputError(f"{name}: takes one value, not {described(value)}") from None


def _paths(value, name):
    """Return the paths, texts, in a value that is one or a list of them. Raises InputError for any other."""
    return [_path(one, name) for one in (value if isinstance(value, list | tuple) else [value])]


def _path(value, name):
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise InputError(f"{name}: {value!r} is no path")
    return os.fspath(value)


def _refuse(message):
    raise InputError(message)


def _take_plugins(argv):
    """Make known what --plugin names, on the command line or in the file of --config, before flags are parsed.

    Raises InputError for one that is not there.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--plugin", action="append", default=[])
    early.add_argument("--config", "--like")
    with contextlib.suppress(argparse.ArgumentError):
        found, _ = early.parse_known_args(argv)
        plugins = found.plugin
        if found.config is not None:
            with contextlib.suppress(InputError):  # it is refused when it is read
                plugins = [*plugins, *early.parse_known_args(words_in(found.config))[0].plugin]
        use_plugins(plugins)


def _of_files(parser, given):
    """Return the settings {name: value} of the files that --recipe and --config name, the latter's where both have one.

    given: the flags {name: value}. A file of --config may name a recipe.
    """
    config = {} if given.get("config") is None else vars(_read_config(parser, given["config"]))
    recipe = given.get("recipe") or config.pop("recipe", None)
    of_recipe = {} if recipe is None else vars(_read_config(parser, HERE / "recipes" / f"{recipe}.txt"))
    both = {name for name in ("partition", "dirichlet") if config.get(name) is not None}
    of_recipe = {name: value for name, value in of_recipe.items() if not both or name not in ("partition", "dirichlet")}
    return {**spread(of_recipe), **spread({name: v for name, v in config.items() if name != "recipe"})}


def _read_config(parser, path):
    try:
        tokens = words_in(path)
    except InputError as error:
        parser.error(f"--config {error}")
    inner = build_parser(f"fedalg.py: --config {path}")
    if "error" in vars(parser):  # it raises rather than exits
        inner.error = lambda message: parser.error(f"--config {path}: {message}")
    config = inner.parse_args(tokens)
    if "config" in config:
        parser.error(f"--config {path}: a config file cannot name another one")
    return config


def checked_settings(settings, path, data_root=None):
    """Return the Namespace of {name: value} that a file at `path` holds, checked as if they had been typed.

    Raises InputError. What belongs to the machine that wrote them, as files and threads do, is left at its default; but
    for data_root, if given: it may hold the dataset.
    """
    _check_components(settings, path, data_root or all_options()["data_root"].default)
    words = [] if data_root is None else [f"--data_root={data_root}"]
    of_machine = {option.name for group in ("machine", "files") for option in OPTIONS[group]}
    for name, value in settings.items():
        option = all_options().get(name)
        if option is None:
            raise InputError(f"{path}: there is no setting {name}: is it of a --plugin?")
        if name in of_machine or option.kind == "path":
            continue
        if option.kind == "flag":
            words.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            words.append(f"--{name}={value}")
    parser = build_parser()

    def refuse(message):
        raise InputError(f"{path}: {message}")

    parser.error = refuse
    return resolve(vars(parser.parse_args(words)))


def _check_components(settings, path, data_root):
    """Raise InputError if the settings {name: value} of the file at `path` name a component that is not at hand.

    A dataset may be a folder in data_root.
    """
    for shelf in SHELVES:
        name = settings.get(shelf)
        name = name.partition(":")[0] if shelf == "partition" and isinstance(name, str) else name
        if not isinstance(name, str) or name in specs(shelf):
            continue
        if shelf != "dataset" or place_of(name, data_root) is None:
            or_folder = f" or in --data_root {data_root}" if shelf == "dataset" else ""
            raise InputError(f"{path}: there is no --{shelf} {name}: is it of a --plugin{or_folder}?")
