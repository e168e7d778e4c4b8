"""What `pip install` takes along: all of the package, and the doors that it goes through."""

import ast
import tomllib

from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_module_is_in_a_package_that_is_found():
    for path in (ROOT / "fedmerge").rglob("*.py"):
        assert (path.parent / "__init__.py").exists(), f"{path} is in no package"
    assert PROJECT["tool"]["setuptools"]["packages"]["find"]["include"] == ["fedmerge", "fedmerge.*"]


def test_every_other_file_of_it_is_taken_along():
    taken = {
        path
        for glob in PROJECT["tool"]["setuptools"]["package-data"]["fedmerge"]
        for path in (ROOT / "fedmerge").glob(glob)
    }
    others = {path for path in (ROOT / "fedmerge").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert others == taken


def test_the_doors_that_it_imports_are_taken_along():
    doors, taken = {path.stem for path in ROOT.glob("*.py")}, set(PROJECT["tool"]["setuptools"]["py-modules"])
    sources = [*(ROOT / "fedmerge").rglob("*.py"), *(ROOT / f"{name}.py" for name in taken)]
    imported = set()
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module)
    assert imported & doors <= taken


def test_what_it_needs_is_what_the_requirements_say():
    assert PROJECT["tool"]["setuptools"]["dynamic"]["dependencies"] == {"file": ["requirements.txt"]}
    assert (ROOT / PROJECT["project"]["license-files"][0]).exists()
