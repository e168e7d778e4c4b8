"""The shelves: what lies on them is known by its source, and imported when a run takes it.

A component is registered by a decorator, in a file of its shelf's folder or of a plugin:

    @algorithm("fedprox", title="FedProx", paper="Li et al. 2020")
    class FedProx(FedAvg):
        \"\"\"FedAvg with a proximal pull to the received model\"\"\"

Reading the source keeps `--help`, refused command lines and figures free of torch's seconds of importing.
"""

import ast
import functools
import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedmerge.declared import check_arguments, check_class
from fedmerge.errors import InputError, reason

HERE = Path(__file__).resolve().parent
# The flag that chooses a component -> (the decorator that registers one, the folder where they are).
SHELVES = {
    "algorithm": ("algorithm", "algorithms"),
    "local": ("local_method", "local_methods"),
    "compressor": ("compressor", "compressors"),
    "merge": ("merging_rule", "merging"),
    "dataset": ("dataset", "datasets"),
    "partition": ("partition", "partitions"),
    "model_name": ("network", "networks"),
}
# What a shelf's components derive from, by its name there, or the arguments that they are called with.
CONTRACTS = {
    "algorithm": "fedavg",
    "local": "sgd",
    "compressor": "none",
    "merge": ("aggregate", "layout"),
    "dataset": ("root", "seed"),
    "partition": ("classes", "n_clients", "value", "rng"),
    "model_name": ("channels", "image_size", "n_classes", "norm"),
}
AXES = ("local", "compressor", "merge", "algorithm")  # whose components have options, in the order of these
PLUGINS = []  # Paths of files and folders besides: of --plugin
LARGEST = 2**20  # bytes of a file of a plugin


@dataclass(frozen=True)
class Spec:
    """What is known of a component by its source."""

    shelf: str  # a key of SHELVES
    name: str
    object: str  # what it is called in its file
    file: Path
    line: int
    summary: str  # first line of its docstring
    options: dict  # name -> (default, kind, help[, "other_option=value" that it needs]), inherited ones first
    lines: dict  # name of an option -> (file, line)
    defaults: dict  # flag -> its default for this component, where that is another than for the rest
    presets: dict  # name -> {flag: value}
    more: dict  # what else the decorator says, but for functions: these are in the component's `registered`

    @property
    def title(self):
        """What figures and tables call it."""
        return self.more.get("title", self.name)

    @property
    def place(self):
        return f"{self.file}: line {self.line}"


# --------------------------------------------------------------------------------------------------------------------
# Decorators


def _decorator(shelf):
    def register(name, **more):
        """Make what stands below known as `name`. more: title, paper, and what the shelf's components have besides:
        written out, or functions that are defined above it in its file.
        """

        def add(component):
            component.registered = {"name": name, **more}
            return component

        return add

    register.__name__ = SHELVES[shelf][0]
    return register


algorithm, local_method, compressor, merging_rule, dataset, partition, network = map(_decorator, SHELVES)


# --------------------------------------------------------------------------------------------------------------------
# Reading


def add_plugin(path: str | Path) -> None:
    """Take what a file, or the files of a folder, register besides. Raises InputError if there is none."""
    path = Path(path).absolute()
    if not path.exists():
        raise InputError(f"--plugin {path}: there is no such file or folder")
    if path not in PLUGINS:
        PLUGINS.append(path)
        _specs.cache_clear()


def plugin_files() -> list[Path]:
    """Return the Paths of the Python files of --plugin and of the folders in FEDMERGE_PLUGINS."""
    places = [*PLUGINS, *(Path(p).absolute() for p in os.environ.get("FEDMERGE_PLUGINS", "").split(os.pathsep) if p)]
    found = [sorted(place.glob("*.py")) if place.is_dir() else [place] for place in places]
    return list(dict.fromkeys(path for paths in found for path in paths))


def specs(shelf: str) -> dict[str, Spec]:
    """Return {name: Spec} of all components of a shelf. Raises InputError, with file and line, for a mistake in one."""
    return _specs(shelf, tuple(plugin_files()))


def having(shelf, keyword):
    """Return the names of a shelf's components of which the decorator says something else than False of `keyword`."""
    return [name for name, spec in sorted(specs(shelf).items()) if spec.more.get(keyword)]


def said(shelf, name, keyword, default=None):
    """Return what the decorator of a component says of `keyword`: `default` if nothing, or there is no such one."""
    spec = specs(shelf).get(name)
    return default if spec is None else spec.more.get(keyword, default)


def requirements(spec: Spec) -> dict[str, tuple]:
    """Return {flag: values that it may have} of a component: what its decorator's `requires` says.

    A word there stands for the components of that shelf whose own registration says it.
    """
    given = spec.more.get("requires", {}).items()
    return {flag: tuple(having(flag, able)) if isinstance(able, str) else able for flag, able in given}


@functools.cache
def _specs(shelf, plugins):
    decorator, folder = SHELVES[shelf]
    files, found = [*sorted((HERE / folder).glob("*.py")), *plugins], {}
    for file in files:
        for node in _decorated(file, decorator):
            for call in getattr(node, "decorator_list", ()):
                if isinstance(call, ast.Call) and getattr(call.func, "id", None) == decorator:
                    spec = _spec(shelf, node, call, file, files)
                    if spec.name in found:
                        raise InputError(
                            f"{spec.place}: --{shelf} {spec.name} is registered already, in {found[spec.name].file}"
                        )
                    found[spec.name] = spec
    return found


def _spec(shelf, node, call, file, files):
    if not call.args:
        raise InputError(f"{file}: line {call.lineno}: {node.name} is registered without a name")
    name = _literal(call.args[0], file, f"the name of {node.name}")
    words = [word for word in call.keywords if word.arg != "options" and not _is_function(word.value, file)]
    more = {word.arg: _literal(word.value, file, f"{word.arg} of {name}") for word in words}
    options, lines = {}, {}
    for owner, dictionary in _options_of(node, file, files):
        for key, value in zip(dictionary.keys, dictionary.values, strict=True):
            option = _literal(key, owner, "the name of an option")
            options[option] = _literal(value, owner, f"option {option} of {node.name}")
            lines[option] = owner, value.lineno
    defaults, presets = ({}, {})
    if isinstance(node, ast.ClassDef):
        defaults, presets = (_assigned(node, file, attribute) for attribute in ("defaults", "presets"))
        defaults |= more.pop("defaults", {})  # of one of several names
    summary = (ast.get_docstring(node) or "").split("\n")[0]
    return Spec(shelf, name, node.name, file, node.lineno, summary, options, lines, defaults, presets, more)


def _options_of(node, file, files):
    """Return [(file, dictionary node)] of the options that a class has, inherited ones first, or a function."""
    if isinstance(node, ast.FunctionDef):
        words = [word for call in node.decorator_list for word in getattr(call, "keywords", ())]
        return [(file, _dictionary(word.value, file, node)) for word in words if word.arg == "options"]
    found = []
    for base in reversed(node.bases):
        name = getattr(base, "attr", getattr(base, "id", None))
        inherited = _class(name, file, files)
        if inherited:
            found += _options_of(*inherited, files)
    own = [s.value for s in node.body if isinstance(s, ast.Assign) and getattr(s.targets[0], "id", None) == "options"]
    return found + [(file, _dictionary(value, file, node)) for value in own]


def _class(name, file, files):
    """Return (node, file) of the class of that name, in the `file` itself or another of the `files`, None without."""
    for other in [file, *files]:
        if re.search(rf"^class {name}\b", _text(other), re.MULTILINE):
            for node in _tree(other).body:
                if isinstance(node, ast.ClassDef) and node.name == name:
                    return node, other
    return None


def _dictionary(node, file, owner):
    if not isinstance(node, ast.Dict) or None in node.keys:
        raise InputError(f"{file}: line {node.lineno}: the options of {owner.name} are not written out as a dict")
    return node


def _assigned(node, file, attribute):
    """Return the dict that the class body assigns to `attribute`, {} if it does not."""
    for statement in node.body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", None) == attribute:
            return _literal(statement.value, file, f"{attribute} of {node.name}")
    return {}


def _is_function(node, file):
    """Tell whether it is the name of a function of the file: only who imports the component has a use for it."""
    return isinstance(node, ast.Name) and re.search(rf"^def {node.id}\(", _text(file), re.MULTILINE) is not None


def _literal(node, file, what):
    try:
        return ast.literal_eval(node)
    except ValueError:
        said = ast.unparse(node)[:60]
        raise InputError(
            f"{file}: line {node.lineno}: {what}: is read, not run, and must be written out: {said}"
        ) from None


def _decorated(file, decorator):
    """Return the nodes of the file among which are those with the decorator.

    Of functions, no more of the file is parsed than them: a dataset may have a long reader, and --help is in a hurry.
    """
    text, nodes = _text(file), []
    for found in re.finditer(rf"^@{decorator}\(.*?^(class|def) ", text, re.MULTILINE | re.DOTALL):
        if found[1] == "class":
            return _tree(file).body
        end = re.compile(r"^[^\s#)]", re.MULTILINE).search(text, found.end())
        try:
            (node,) = ast.parse(text[found.start() : end and end.start()]).body
        except (SyntaxError, ValueError):  # written otherwise than expected, or it is none
            return _tree(file).body
        nodes.append(ast.increment_lineno(node, text.count("\n", 0, found.start())))
    return nodes


@functools.cache
def _text(file):
    try:
        with open(file, encoding="utf-8") as source:
            return source.read(LARGEST)
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({reason(error)})") from None


@functools.cache
def _tree(file):
    try:
        return ast.parse(_text(file))
    except SyntaxError as error:
        raise InputError(f"{file}: line {error.lineno}: is not Python ({error.msg})") from None


# --------------------------------------------------------------------------------------------------------------------
# Importing


_CHECKED = set()  # (shelf, name, file) of components that are what their shelf holds


class Shelf(Mapping):
    """The components of a shelf by their names; one is imported when it is asked for."""

    def __init__(self, shelf):
        self.shelf = shelf

    def __iter__(self):
        return iter(sorted(specs(self.shelf)))

    def __len__(self):
        return len(specs(self.shelf))

    def __getitem__(self, name):
        spec = specs(self.shelf)[name]
        component, contract = getattr(_module(spec.file), spec.object), CONTRACTS[self.shelf]
        key = (self.shelf, name, spec.file)
        if key not in _CHECKED:
            if isinstance(contract, tuple):
                check_arguments(component, contract, spec.options)
            elif name != contract:
                check_class(component, self[contract])
            _CHECKED.add(key)
        return component


ALGORITHMS, LOCAL_METHODS, COMPRESSORS, MERGING_RULES, DATASETS, PARTITIONS, NETWORKS = map(Shelf, SHELVES)


def _module(file):
    """Return the module that a file is, imported. Raises InputError, with file and line, if it cannot be."""
    if file.is_relative_to(HERE):
        try:
            return importlib.import_module(".".join(("fedmerge", *file.relative_to(HERE).with_suffix("").parts)))
        except Exception as error:
            raise InputError(f"{file}: {_line_of(error, file)}{type(error).__name__}: {reason(error)}") from error
    name = f"fedmerge_plugin_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        found = importlib.util.spec_from_file_location(name, file)
        module = sys.modules[name] = importlib.util.module_from_spec(found)
        try:
            found.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise InputError(f"{file}: {_line_of(error, file)}{type(error).__name__}: {reason(error)}") from error
    return sys.modules[name]


def _line_of(error, file):
    """Return where in the file an error came up, in words."""
    lines, trace = [], error.__traceback__
    while trace:
        lines += [trace.tb_lineno] if trace.tb_frame.f_code.co_filename == str(file) else []
        trace = trace.tb_next
    return f"line {lines[-1]}: " if lines else ""
