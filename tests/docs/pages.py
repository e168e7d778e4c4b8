"""The pages of the documentation, the commands and examples in them, and a copy of the program to paste into."""

import os
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
OTHERS = [ROOT / "SECURITY.md", ROOT / "benchmarks" / "README.md"]


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(page, language):
    """Return the texts of a page's blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def prose(page):
    """Return the text of a page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def commands(page):
    """Return the lines of a page's shell blocks, without comments, those of scripts in between left out."""
    text = re.sub(r"<<'END'\n.*?\nEND\n", "\n", "\n".join(blocks(page, "sh")), flags=re.DOTALL)
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in text.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line]


def examples():
    """Return {path: text} of the files that README.md and docs/extending.md have as examples."""
    found = {}
    for page in (ROOT / "README.md", ROOT / "docs" / "extending.md"):
        text = page.read_text(encoding="utf-8")
        for path, code in re.findall(r"`([\w/]+\.py)`[^\n`]*\n\n```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            assert path not in found, f"{path} is an example twice"
            found[path] = code
    return found


def copy_program(folder):
    """Copy the doors and the package into `folder`, a Path; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for door in ROOT.glob("*.py"):
        shutil.copy(door, folder)
    shutil.copytree(ROOT / "fedmerge", folder / "fedmerge", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def environment():
    """Return the variables of a process with one thread that finds no plugins but those it is told of."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "FEDMERGE_PLUGINS": "", "MPLBACKEND": "agg"}
