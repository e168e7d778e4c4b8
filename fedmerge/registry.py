"""The shelves: what lies on them is known by its source, and imported when a run takes it.

A component is registered by a decorator, in a file of its shelf's folder or of a plugin:

    @algorithm("fedprox", title="FedProx", paper="Li et al. 2020")
    class FedProx(FedAvg):
        \"\"\"FedAvg with a proximal pull to the received model\"\"\"
"""

import functools
import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from fedmerge.component_source import Spec, helpers_of, read
from fedmerge.declared import check_arguments, check_class, mistake
from fedmerge.errors import InputError, reason
from fedmerge.python_source import HERE, drop_old_bytecode, version_of

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
AXES = ("local", "compressor", "merge", "algorithm")  # that a published method is a row over
WITH_OPTIONS = (*AXES, "model_name")  # whose components have options, in the order of these
_PLUGINS = ContextVar("plugins", default=())  # Paths of files and folders besides, of --plugin: of a thread's run
_SEEN = ContextVar("seen", default=None)  # within `one_look`, a list: empty, or of plugin_versions()


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


def use_plugins(paths) -> None:
    """Take what these files, or the files of these folders, register besides, and no others any more, in this thread.

    Raises InputError, and changes nothing, if one is not there.
    """
    paths = [Path(path).absolute() for path in paths]
    for path in paths:
        if not path.exists():
            raise InputError(f"--plugin {path}: there is no such file or folder")
    _PLUGINS.set(tuple(dict.fromkeys(paths)))
    if _SEEN.get():
        _SEEN.get().clear()


@contextmanager
def plugins_held():
    """While this lasts, `use_plugins` may be called; afterwards those from before are known again."""
    token = _PLUGINS.set(_PLUGINS.get())
    try:
        yield
    finally:
        _PLUGINS.reset(token)


def plugins() -> tuple:
    """Return the Paths of files and folders of --plugin, in this thread."""
    return _PLUGINS.get()


def plugin_files() -> list[Path]:
    """Return the Paths of the Python files of --plugin and of the folders in FEDMERGE_PLUGINS."""
    named = [Path(path).absolute() for path in os.environ.get("FEDMERGE_PLUGINS", "").split(os.pathsep) if path]
    for path in named:
        if not path.exists():
            raise InputError(f"FEDMERGE_PLUGINS: {path}: there is no such file or folder")
    places = [*plugins(), *named]
    found = [_files_in(place) if place.is_dir() else [place] for place in places]
    return list(dict.fromkeys(path for paths in found for path in paths))


def _files_in(folder):
    return sorted(path for path in folder.glob("[!.]*.py") if not path.is_dir())


def plugin_versions() -> tuple:
    """Return ((Path, when it was changed, its size), ...) of `plugin_files`: what is known of them is for these."""
    seen = _SEEN.get()
    if seen:
        return seen[0]
    versions = tuple(version_of(path) for path in plugin_files())
    if seen is not None:
        seen.append(versions)
    return versions


@contextmanager
def one_look():
    """While this lasts, files of plugins are looked at once: a command line asks for them hundreds of times."""
    token = _SEEN.set([] if _SEEN.get() is None else _SEEN.get())
    try:
        yield
    finally:
        _SEEN.reset(token)


def specs(shelf: str) -> dict[str, Spec]:
    """Return {name: Spec} of all components of a shelf. Raises InputError, with file and line, for a mistake in one."""
    return _specs(shelf, plugin_versions())


def find(shelf: str, name) -> Spec | None:
    """Return the Spec of the component that `name` chooses; None if there is none.

    That of a family, whose name ends in a slash, for each `family/member`: it alone knows its members.
    """
    known, (family, slash, member) = specs(shelf), str(name).partition("/")
    return known.get(family + slash if slash and re.fullmatch(r"[A-Za-z0-9][\w.-]*", member) else name)


class Names(list):
    """The names of a shelf's components, as they are shown; those of the members of its families are in it, too."""

    def __init__(self, shelf):
        super().__init__(spec.shown for _, spec in sorted(specs(shelf).items()))
        self.shelf = shelf

    def __contains__(self, name):
        return not str(name).endswith("/") and find(self.shelf, name) is not None


def having(shelf, keyword):
    """Return the names of a shelf's components, as they are shown, of which the decorator says something else than
    False of `keyword`.
    """
    return [spec.shown for _, spec in sorted(specs(shelf).items()) if spec.more.get(keyword)]


def said(shelf, name, keyword, default=None):
    """Return what the decorator of a component says of `keyword`: `default` if nothing, or there is no such one."""
    spec = find(shelf, name)
    return default if spec is None else spec.more.get(keyword, default)


def requirements(spec: Spec) -> dict[str, tuple]:
    """Return {flag: values that it may have} of a component: what its decorator's `requires` says.

    A word there stands for the components of that shelf whose own registration says it.
    """
    given = spec.more.get("requires", {}).items()
    return {flag: tuple(having(flag, able)) if isinstance(able, str) else able for flag, able in given}


@functools.cache
def _specs(shelf, versions):
    decorator, folder = SHELVES[shelf]
    files, found = [*sorted((HERE / folder).glob("*.py")), *(path for path, *_ in versions)], {}
    for file in files:
        for spec in read(file, shelf, decorator, files):
            alike = next((other for name, other in found.items() if _same_file(name) == _same_file(spec.name)), None)
            if alike:
                words = "" if alike.name == spec.name else f" as {alike.name}, which is the same in names of files"
                raise InputError(f"{spec.place}: --{shelf} {spec.name} is registered already{words}, in {alike.file}")
            found[spec.name] = spec
    return found


def _same_file(name):
    return name.replace("_", "-")


# --------------------------------------------------------------------------------------------------------------------
# Importing


_CHECKED = set()  # (shelf, name, version of the file) of components that are what their shelf holds


class Shelf(Mapping):
    """The components of a shelf by their names; one is imported when it is asked for.

    Families are not among them, but their members, which they are not asked to list, can be had by their names.
    """

    def __init__(self, shelf):
        self.shelf = shelf

    def __iter__(self):
        return iter(sorted(name for name in specs(self.shelf) if not name.endswith("/")))

    def __len__(self):
        return len(list(iter(self)))

    def __getitem__(self, name):
        spec = find(self.shelf, name)
        if spec is None:
            raise KeyError(name)
        component, contract = getattr(_module(spec.file), spec.object), CONTRACTS[self.shelf]
        key = (self.shelf, spec.name, version_of(spec.file))
        if key not in _CHECKED:
            if isinstance(contract, tuple):
                check_arguments(component, (*contract, *["member"] * spec.is_family), spec.options)
            elif name != contract:
                check_class(component, self[contract])
                _check_options(component, spec)
            _CHECKED.add(key)
        if not spec.is_family:
            return component
        return functools.wraps(component)(functools.partial(component, member=name.removeprefix(spec.name)))


def _check_options(cls, spec):
    """Raise InputError if a class has other options than its source, as it is read, tells of."""
    unread = [name for name, option in cls.options.items() if spec.options.get(name) != option]
    unread += [name for name in spec.options if name not in cls.options]
    if unread:
        raise mistake(
            cls,
            f"the option {unread[0]} is another than its source says, which is read, not run: derive from classes by "
            "their names, and write options = {...} out",
        )


ALGORITHMS, LOCAL_METHODS, COMPRESSORS, MERGING_RULES, DATASETS, PARTITIONS, NETWORKS = map(Shelf, SHELVES)


def _module(file):
    """Return the module that a file is, imported. Raises InputError, with file and line, if it cannot be."""
    if file.is_relative_to(HERE):
        try:
            return importlib.import_module(".".join(("fedmerge", *file.relative_to(HERE).with_suffix("").parts)))
        except (Exception, SystemExit) as error:
            raise _not_imported(file, error) from error
    versions = repr(source_versions(file))
    name = f"fedmerge_plugin_{file.stem}_{hashlib.sha256(versions.encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        _make_importable(file, helpers_of(file))
        drop_old_bytecode(file)
        found = importlib.util.spec_from_file_location(name, file)
        module = sys.modules[name] = importlib.util.module_from_spec(found)
        try:
            found.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            raise _not_imported(file, error) from error
    return sys.modules[name]


_IMPORTED = {}  # name of a module beside a plugin -> (Path, version) when it was made importable


def _make_importable(file, helpers):
    """See to it that a plugin's imports find what lies beside it, `helpers` {name of a module: Path}, as it is now.

    Raises InputError for one whose name is taken: by a module of Python, of the program, or beside another plugin.
    """
    if str(file.parent) not in sys.path:  # last, so that what lies beside it hides nothing of others
        sys.path.append(str(file.parent))
    importlib.invalidate_caches()
    for name, path in helpers.items():
        now = path, _version_of_module(path)
        before = _IMPORTED.get(name, now)
        for source, *_ in now[1]:
            drop_old_bytecode(source)
        if before[0] == path and before != now:
            for stale in [known for known in sys.modules if known.split(".")[0] == name]:
                del sys.modules[stale]
        found = sys.modules[name].__spec__ if name in sys.modules else importlib.util.find_spec(name)
        if found is None or found.origin != str(path):
            other = (found and found.origin) or "a part of Python"
            raise InputError(f"{file}: imports {name}, which lies beside it, but {name} is {other} here: another name")
        _IMPORTED[name] = now


def _version_of_module(path):
    """Return the versions of a module's files: of a package, of all that are in its folder."""
    files = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
    return [version_of(file) for file in files]


def source_versions(file: Path) -> list[tuple]:
    """Return the versions of a component's file and, of a plugin's, of what lies beside it and is imported by it."""
    helpers = [] if file.is_relative_to(HERE) else helpers_of(file).values()
    return [version_of(file), *(version for path in helpers for version in _version_of_module(path))]


def _not_imported(file, error):
    """Return the InputError that says what came up as the file was imported."""
    said = "ends the program as it is imported" if isinstance(error, SystemExit) else reason(error)
    return InputError(f"{file}: {_line_of(error, file)}{type(error).__name__}: {said}")


def _line_of(error, file):
    """Return where in the file an error came up, in words."""
    lines, trace = [], error.__traceback__
    while trace:
        lines += [trace.tb_lineno] if trace.tb_frame.f_code.co_filename == str(file) else []
        trace = trace.tb_next
    return f"line {lines[-1]}: " if lines else ""
