"""What a run was made with: the code, the versions, the device; and whether a finished run is still the same work.

Nothing here imports torch at module level.
"""

import ast
import functools
import hashlib
import re
import subprocess
from contextlib import suppress
from pathlib import Path

from fedmerge import registry
from fedmerge.config.split_files import drawn_as
from fedmerge.python_source import modules, text_of, tree_of, version_of

HERE = Path(__file__).resolve().parent.parent
# A string, whose # begins no comment, or a comment. Several times as fast as tokenize, and a hundred files are read at
# the start of every run. Strings within the braces of an f-string that use its own quotes (Python 3.12) are beyond it.
LITERAL_OR_COMMENT = re.compile(
    r"""('{3}|"{3})(?:\\.|(?!\1)[^\\])*\1|(['"])(?:\\.|(?!\2)[^\\\n])*\2|#[^\n]*""", re.DOTALL
)
MATTER = ("torch", "torchvision", "numpy", "scikit-learn")  # libraries of which another version may mean other figures


def code_hash(settings):
    """Return a hash, 16 hex digits, of the code that a run of these `settings` {name: value} computes with.

    That is fedalg.py, all that it imports from here, and the files of the components that the settings name. Comments,
    docstrings and empty lines have no part in it, nor have the figures and the launcher. It is the same under every
    version of Python.
    """
    settings = {**settings, "partition": (drawn_as(settings) or "").partition(":")[0]}
    files = {spec.file for shelf in registry.SHELVES if (spec := registry.find(shelf, settings.get(shelf)))}
    files = sorted(files)
    return _hash_of((HERE / "fedalg.py", *files), tuple(v for file in files for v in registry.source_versions(file)))


@functools.cache
def _hash_of(files, versions):
    """versions: of the files, and of what plugins import; what is known of them is for these."""
    digest, found, waiting = hashlib.sha256(), {}, list(files)
    while waiting:
        file = waiting.pop()
        if file not in found:
            found[file], imported = _read(version_of(file))
            waiting += imported
            if not file.is_relative_to(HERE):  # beside a plugin lies what it computes with, also in its functions
                waiting += _imported(ast.walk(tree_of(file)), {file.parent})
    named = [(str(file.relative_to(HERE) if file.is_relative_to(HERE) else file.name), found[file]) for file in found]
    for name, code in sorted(named):  # of plugins, two may have one name
        digest.update(f"{name}\0{code}\0".encode())
    return digest.hexdigest()[:16]


@functools.cache
def _read(version):
    """Return (code of a file of this version without words, files of the program that it imports at its top)."""
    file, *_ = version
    tree = tree_of(file)
    return _code_of(text_of(file), tree), _imported(tree.body, {HERE})


def _imported(nodes, folders):
    """Return the files in these folders that are imported by the nodes."""
    names = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [file for name in filter(None, names) for file in modules(name, folders)]


def _code_of(text, tree):
    """Return the lines of a module's text, parsed as `tree`, without its comments and docstrings."""
    text = LITERAL_OR_COMMENT.sub(lambda found: "" if found[0][0] == "#" else found[0], text)
    lines = text.split("\n")  # as ast counts them: to str.splitlines, a form feed ends a line
    for node in _blocks(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            words = node.body[0]
            lines[words.lineno - 1 : words.end_lineno] = [""] * (words.end_lineno - words.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _blocks(node):
    """Yield a tree's node and all statements in it, much faster than ast.walk, which visits expressions too."""
    yield node
    for name in ("body", "handlers", "orelse", "finalbody", "cases"):
        inner = getattr(node, name, ())
        for one in inner if isinstance(inner, list) else ():  # a lambda's body is an expression
            yield from _blocks(one)


@functools.cache
def environment(device, model_name=None):
    """Return {name: text} of what a run on a torch.device is made with: versions, device, commit.

    model_name: its network, which may be another library's.

    The commit is None outside a git checkout. What is returned is of the first call: the files may change meanwhile.
    """
    import platform

    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "python": platform.python_version(),
        **_versions(*_matter(model_name), "pandas"),
        "device": str(device),
        "device_name": name,
        "threads": torch.get_num_threads(),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def differences(environment, settings):
    """Return in words, one a difference, in what that matters an earlier run's environment {name: text} is another.

    What it does not tell is no difference.
    """
    here = _versions(*_matter(settings.get("model_name")))
    words = [f"{p} {environment[p]}, not {v}" for p, v in here.items() if environment.get(p, v) != v]
    here = code_hash(settings)
    code, commit = environment.get("code", here), environment.get("commit")
    if code != here:
        words.insert(0, "other code" + (f" (commit {str(commit)[:8]})" if commit else ""))
    return words


def _matter(model_name):
    library = registry.said("model_name", model_name, "library")
    return (*MATTER, library) if library else MATTER


def _versions(*packages):
    from importlib.metadata import version

    import torch

    return {package: torch.__version__ if package == "torch" else version(package) for package in packages}


def _processor():
    import platform

    with suppress(OSError):  # Linux; elsewhere platform knows
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def _git(*words):
    try:
        done = subprocess.run(["git", "-C", HERE, *words], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
