"""What the source of a component says of it: its name, title, options, defaults, read and not run.

Reading the source keeps `--help`, refused command lines and figures free of torch's seconds of importing.
"""

import ast
import functools
import re
from dataclasses import dataclass
from pathlib import Path

from fedmerge.errors import InputError, reason
from fedmerge.files import read_text

HERE = Path(__file__).resolve().parent
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
    def is_family(self):
        """Whether it stands for all names that begin with its own, which ends in a slash."""
        return self.name.endswith("/")

    @property
    def shown(self):
        """Its name, in lists of them."""
        return self.name + "NAME" * self.is_family

    @property
    def place(self):
        return f"{self.file}: line {self.line}"


def version_of(path: Path) -> tuple:
    """Return (Path, when it was changed, its size): the same as long as it says the same; of a file of the program,
    which is read once, only the Path.
    """
    if path.is_relative_to(HERE):
        return (path,)
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)})") from None
    return path, found.st_mtime_ns, found.st_size


def read(file: Path, shelf: str, decorator: str, files: list) -> list[Spec]:
    """Return the Specs of what a file registers by the decorator of that name. files: where base classes may be.

    Raises InputError, with file and line, for what cannot be read.
    """
    found = []
    for node in _decorated(file, decorator):
        calls = [call for call in getattr(node, "decorator_list", ()) if _called(call) == decorator]
        if len(calls) > 1 and isinstance(node, ast.FunctionDef):
            raise InputError(f"{file}: line {node.lineno}: {node.name} is registered twice: a function each")
        found += [_spec(shelf, node, call, file, files) for call in calls]
    return found


def helpers_of(file: Path) -> dict[str, Path]:
    """Return {name: Path} of the modules, files or packages, that lie beside a plugin and are imported by it, or by one
    of them.
    """
    found, waiting = {}, [file]
    while waiting:
        for node in ast.walk(_tree(waiting.pop())):
            for name in _top_level_names(node):
                places = file.parent / f"{name}.py", file.parent / name / "__init__.py"
                path = next((place for place in places if place.is_file()), None)
                if path and name not in found:
                    found[name] = path
                    waiting.append(path)
    return found


def _top_level_names(node):
    """Return what an import statement imports, "a" for `import a.b` and for `from a.b import c`."""
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    return [node.module.split(".")[0]] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []


def _called(node):
    """Return what a call calls, "f" of f(...) and of module.f(...); None for what is no call."""
    function = getattr(node, "func", None)
    return getattr(function, "id", getattr(function, "attr", None))


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
    return found + [(file, _dictionary(value, file, node)) for value in _values(node, "options")]


def _values(node, attribute):
    """Return the nodes of what a class body assigns to `attribute`, with or without an annotation."""
    targets = [(getattr(s, "targets", [getattr(s, "target", None)])[0], s) for s in node.body]
    return [s.value for target, s in targets if getattr(target, "id", None) == attribute and s.value is not None]


def _class(name, file, files):
    """Return (node, file) of the class that is called `name` in a file, None without: it is one of its own, one that it
    imports, or one of the `files`.
    """
    sources = [file]
    for node in _tree(file).body:
        for alias in node.names if isinstance(node, ast.ImportFrom) and not node.level else ():
            if (alias.asname or alias.name) == name:
                name, parts = alias.name, node.module.split(".")
                places = [root.joinpath(*parts) for root in (HERE.parent, file.parent)]
                modules = [p for place in places for p in (place.with_suffix(".py"), place / "__init__.py")]
                sources = [path for path in modules if path.is_file()]
                break
    for other in dict.fromkeys([*sources, *files]):
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
    for value in _values(node, attribute):
        return _literal(value, file, f"{attribute} of {node.name}")
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
    for found in re.finditer(rf"^@(?:\w+\.)*{decorator}\(.*?^(class|def) ", text, re.MULTILINE | re.DOTALL):
        if found[1] == "class":
            return _tree(file).body
        end = re.compile(r"^[^\s#)]", re.MULTILINE).search(text, found.end())
        try:
            (node,) = ast.parse(text[found.start() : end and end.start()]).body
        except (SyntaxError, ValueError):  # written otherwise than expected, or it is none
            return _tree(file).body
        nodes.append(ast.increment_lineno(node, text.count("\n", 0, found.start())))
    return nodes


def _text(file):
    return _text_of(version_of(file))


def _tree(file):
    return _tree_of(version_of(file))


@functools.cache
def _text_of(version):
    try:
        return read_text(version[0], LARGEST)
    except OSError as error:
        raise InputError(f"{version[0]}: cannot be read ({reason(error)})") from None


@functools.cache
def _tree_of(version):
    file = version[0]
    try:
        return ast.parse(_text_of(version))
    except SyntaxError as error:
        raise InputError(f"{file}: line {error.lineno}: is not Python ({error.msg})") from None
