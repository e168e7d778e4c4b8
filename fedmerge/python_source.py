"""Python files that are read and not run: their text, their trees, and what their classes derive from."""

import ast
import functools
import re
from contextlib import suppress
from importlib.util import cache_from_source, decode_source
from pathlib import Path

from fedmerge.errors import InputError, reason
from fedmerge.files import read_bytes

HERE = Path(__file__).resolve().parent
LARGEST = 2**24  # bytes of a file of a plugin, or of what it imports


def version_of(path: Path) -> tuple:
    """Return (Path, when it was changed, its size): the same as long as it says the same; of a file of the program,
    which is read once, only the Path. Raises InputError if it cannot be read.
    """
    if path.is_relative_to(HERE):
        return (path,)
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)})") from None
    return path, found.st_mtime_ns, found.st_size


def text_of(file: Path) -> str:
    """Return the text of a file as Python reads it: UTF-8 with or without a mark, or what its first lines declare.

    Raises InputError, with file and line, if it is none.
    """
    return _text_of(version_of(file))


def tree_of(file: Path) -> ast.Module:
    """Return the tree of a file. Raises InputError, with file and line, if it is not Python."""
    return _tree_of(version_of(file))


def drop_old_bytecode(file: Path) -> None:
    """Remove what Python compiled of a file, if that may be of an earlier text.

    Python takes it for this text's if the source has the same size and was changed in the same second as then. So a
    file that is edited and imported again within a second, as scripts do, would be the old one without a word.
    """
    compiled = Path(cache_from_source(file))
    with suppress(OSError):
        if compiled.stat().st_mtime - file.stat().st_mtime < 2:
            compiled.unlink()


@functools.cache
def _text_of(version):
    file = version[0]
    try:
        data = read_bytes(file, LARGEST)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({reason(error)})") from None
    try:
        text = decode_source(data)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{file}: line {line}: is not {error.encoding}, which Python takes it for") from None
    except SyntaxError as error:  # an encoding that there is not, or none is declared for the first lines
        odd = re.search(rb"[^\0-\x7f]", data)
        line = data.count(b"\n", 0, odd.start() if odd else 0) + 1
        raise InputError(f"{file}: line {line}: {error.msg}") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{file}: line {line}: is not Python (holds a NUL character)")
    return text


@functools.cache
def _tree_of(version):
    file = version[0]
    try:
        return ast.parse(_text_of(version))
    except SyntaxError as error:
        raise InputError(f"{file}: line {error.lineno}: is not Python ({error.msg})") from None
    except (RecursionError, MemoryError):
        raise InputError(f"{file}: has an expression too deep for Python to read") from None


# --------------------------------------------------------------------------------------------------------------------
# Base classes


def lineage(node, file: Path, files: list, below: tuple = ()) -> list:
    """Return [(class node, its file)] of what a class derives from, inherited ones first, and of itself.

    files: where base classes may be whose import tells nothing. Raises InputError for one that derives from itself.
    """
    if (file, node.lineno) in below:
        raise InputError(f"{file}: line {node.lineno}: {node.name} derives from itself")
    found = []
    for base in reversed(node.bases):
        inherited = _class_of(base, node, file, files)
        found += lineage(*inherited, files, (*below, (file, node.lineno))) if inherited else []
    return [*found, (node, file)]


def _class_of(base, node, file, files):
    """Return (node, file) of the class that an expression `base` stands for above the class `node` of a file; None
    if that cannot be read.
    """
    if not isinstance(base, (ast.Name, ast.Attribute)):
        return None
    name = getattr(base, "id", getattr(base, "attr", None))
    sources, above = [], []
    if isinstance(base, ast.Name):
        above = [statement for statement in tree_of(file).body if statement.lineno < node.lineno]
    for statement in reversed(above):
        if isinstance(statement, ast.ClassDef) and statement.name == name:
            return statement, file
        if isinstance(statement, ast.Assign) and any(getattr(t, "id", None) == name for t in statement.targets):
            return _class_of(statement.value, ast.ClassDef("", lineno=statement.lineno), file, files)
        for alias in statement.names if isinstance(statement, ast.ImportFrom) and not statement.level else ():
            if (alias.asname or alias.name) == name and not sources:
                name, sources = alias.name, modules(statement.module, {HERE.parent, file.parent})
    if node.name == name and isinstance(base, ast.Name) and not sources:
        raise InputError(f"{file}: line {node.lineno}: {name} derives from itself")
    for other in dict.fromkeys([*sources, *(path for path in files if path != file)]):
        if re.search(rf"^class {name}\b", text_of(other), re.MULTILINE):
            classes = [one for one in tree_of(other).body if isinstance(one, ast.ClassDef) and one.name == name]
            if classes:
                return classes[-1], other
    return None


def modules(name: str, folders) -> list[Path]:
    """Return the files in these folders that may be meant by the dotted name of a module."""
    places = [folder.joinpath(*name.split(".")) for folder in folders]
    return [f for place in places for f in (place.with_suffix(".py"), place / "__init__.py") if f.is_file()]


def names_in(node) -> set:
    """Return the names of the attributes that a class has by its body and its methods, and what `__init__` takes."""
    found = {getattr(statement, "name", None) for statement in node.body}
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store):
            found |= {inner.attr} if getattr(inner.value, "id", None) == "self" else set()
        if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
            found |= {one.arg for one in (*inner.args.args, *inner.args.kwonlyargs)}
    return (found | {target.id for statement in node.body for target in targets(statement)}) - {None}


def targets(statement) -> list:
    """Return the names, as nodes, to which a statement assigns by itself: a = b = 1, a: int = 1."""
    found = getattr(statement, "targets", [getattr(statement, "target", None)])
    return [target for target in found if isinstance(target, ast.Name)]
