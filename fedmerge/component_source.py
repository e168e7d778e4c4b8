"""What the source of a component says of it: its name, title, options, defaults, read and not run.

Reading the source keeps `--help`, refused command lines and figures free of torch's seconds of importing.
"""

import ast
import keyword
import re
from dataclasses import dataclass
from pathlib import Path

from fedmerge.errors import InputError
from fedmerge.python_source import HERE, lineage, names_in, targets, text_of, tree_of


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
        for node in ast.walk(tree_of(waiting.pop())):
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
    name, more = _said(node, call, file, shelf)
    owners = lineage(node, file, files) if isinstance(node, ast.ClassDef) else [(node, file)]
    options, lines, taken = {}, {}, set()
    for owner, place in owners:
        for option, value in _options_of(owner, place):
            if option in taken:
                raise InputError(
                    f"{place}: line {value.lineno}: {owner.name} has an option {option}, which its base class has for "
                    "something else: another name"
                )
            options[option] = _literal(value, place, f"option {option} of {node.name}")
            lines[option] = place, value.lineno
        if isinstance(owner, ast.ClassDef) and not file.is_relative_to(HERE):  # --help is in a hurry
            taken |= names_in(owner) - options.keys()
    settings = {"defaults": {}, "presets": {}}
    if isinstance(node, ast.ClassDef):
        settings = {word: _assigned(node, file, word) for word in settings}
    more, of_name = {word: said for word, said in more.items() if word != "defaults"}, more.get("defaults", {})
    settings["defaults"] = settings["defaults"] | _flags(of_name, node, file, "defaults")  # of one of several names
    summary = (ast.get_docstring(node) or "").split("\n")[0]
    return Spec(shelf, name, node.name, file, node.lineno, summary, options, lines, **settings, more=more)


def _said(node, call, file, shelf):
    """Return the name that a decorator gives, and {word: what it says} but for options and functions."""
    if not call.args:
        raise InputError(f"{file}: line {call.lineno}: {node.name} is registered without a name")
    if len(call.args) > 1 or any(word.arg is None for word in call.keywords):
        raise InputError(
            f'{file}: line {call.lineno}: {node.name}: what registers it is read, not run: a name, then word="..." '
            "each, without * or **"
        )
    name = _literal(call.args[0], file, f"the name of {node.name}")
    of_family = shelf == "model_name" and isinstance(name, str)  # such as "timm/"
    if not is_plain(name.removesuffix("/") if of_family else name):
        raise InputError(
            f"{file}: line {node.lineno}: {node.name}: the name {name!r} is none: letters, digits, _ and -, since "
            "files are called so"
        )
    words = [word for word in call.keywords if word.arg != "options" and not _is_function(word.value, file)]
    return name, {word.arg: _literal(word.value, file, f"{word.arg} of {name}") for word in words}


def is_plain(name) -> bool:
    """Tell whether it is a text that names of files may hold."""
    return isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][\w-]*", name, re.ASCII) is not None


def _options_of(node, file):
    """Return [(name, node of the option)] of what a class, without its bases, or a function declares."""
    if isinstance(node, ast.ClassDef):
        value = _value(node, file, "options")
    else:
        words = [word for call in node.decorator_list for word in getattr(call, "keywords", ())]
        value = next((word.value for word in words if word.arg == "options"), None)
    if value is None:
        return []
    if not isinstance(value, ast.Dict) or None in value.keys:
        raise InputError(f"{file}: line {value.lineno}: the options of {node.name} are not written out as a dict")
    names = [_literal(key, file, "the name of an option") for key in value.keys]
    for key, name in zip(value.keys, names, strict=True):
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
            raise InputError(f"{file}: line {key.lineno}: an option is called {name!r}, which is no name")
        if names.count(name) > 1:
            raise InputError(f"{file}: line {key.lineno}: {node.name} has the option {name} twice")
    return list(zip(names, value.values, strict=True))


def _value(node, file, attribute):
    """Return the node of what a class body assigns to `attribute`, None if nothing.

    Raises InputError where that is not once, and by itself: what is done to it besides would not be seen.
    """
    found = [s for s in node.body if [target.id for target in targets(s)] == [attribute] and _assigns(s)]
    for statement in node.body:
        plain = statement in found[:1] or isinstance(statement, ast.FunctionDef | ast.ClassDef)
        if not plain and any(getattr(inner, "id", None) == attribute for inner in ast.walk(statement)):
            raise InputError(
                f"{file}: line {statement.lineno}: {attribute} of {node.name}: is read, not run, and must be written "
                f"out once: {attribute} = {{...}}"
            )
    return found[0].value if found else None


def _assigns(statement):
    """Tell whether it is `a = value`, with or without an annotation."""
    return isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None


def _assigned(node, file, attribute):
    """Return the dict of flags, or of presets, that the class body assigns to `attribute`, {} if it does not."""
    value = _value(node, file, attribute)
    said = {} if value is None else _literal(value, file, f"{attribute} of {node.name}")
    if attribute == "presets" and isinstance(said, dict):
        for name, preset in said.items():
            if not is_plain(name):
                raise InputError(f"{file}: line {value.lineno}: {node.name}: a preset is called {name!r}: no name")
            _flags(preset, node, file, f"preset {name}")
    return _flags(said, node, file, attribute)


def _flags(said, node, file, what):
    """Return what `defaults` or so say; raise InputError unless it is a dict by names of flags."""
    if not isinstance(said, dict) or not all(isinstance(name, str) for name in said):
        raise InputError(f"{file}: line {node.lineno}: {node.name}: {what}: {said!r} is no dict {{flag: value}}")
    return said


def _is_function(node, file):
    """Tell whether it is the name of a function of the file: only who imports the component has a use for it."""
    return isinstance(node, ast.Name) and re.search(rf"^def {node.id}\(", text_of(file), re.MULTILINE) is not None


def _literal(node, file, what):
    place = f"{file}: line {node.lineno}: {what}: "
    try:
        return ast.literal_eval(node)
    except (ValueError, RecursionError, MemoryError):
        said = " ".join((ast.get_source_segment(text_of(file), node) or "").split())[:60]
        raise InputError(f"{place}is read, not run, and must be written out: {said}") from None
    except TypeError as error:
        raise InputError(f"{place}{error}") from None


def _decorated(file, decorator):
    """Return the nodes of the file among which are those with the decorator.

    Of functions, no more of the file is parsed than them: a dataset may have a long reader, and --help is in a hurry.
    """
    text, nodes = text_of(file), []
    for found in re.finditer(rf"^@(?:\w+\.)*{decorator}\(.*?^(class|def) ", text, re.MULTILINE | re.DOTALL):
        if found[1] == "class":
            return tree_of(file).body
        end = re.compile(r"^[^\s#)]", re.MULTILINE).search(text, found.end())
        try:
            (node,) = ast.parse(text[found.start() : end and end.start()]).body
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # written otherwise than expected, or it is none
            return tree_of(file).body
        nodes.append(ast.increment_lineno(node, text.count("\n", 0, found.start())))
    return nodes
