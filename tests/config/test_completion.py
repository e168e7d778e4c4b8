"""Completion in the shell, as argcomplete asks for it."""

import importlib.util
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from fedmerge.config import completion

SCRIPTS = ["fedalg.py", "plotting.py", "report.py", "data.py", "tune.py"]
needs_argcomplete = pytest.mark.skipif(
    importlib.util.find_spec("argcomplete") is None, reason="needs the package argcomplete"
)


def completed(line, tmp_path):
    """Return how a shell would let a command line `python SCRIPT ...` go on."""
    answer = tmp_path / "answer"
    asked = {
        **{"_ARGCOMPLETE": "2", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "COMP_TYPE": "9"},  # 2: behind python
        **{"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n\"'><=;|&(:"},
    }
    subprocess.run([sys.executable, ROOT / line.split()[1]], env={**os.environ, **asked}, cwd=tmp_path, check=True)
    return [word.strip() for word in answer.read_text().split("\v")]


@needs_argcomplete
@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "answers"),
    [
        ("python fedalg.py --algorithm fedp", ["fedper", "fedprox"]),
        ("python fedalg.py --partition q", ["quantity"]),
        ("python fedalg.py --algorithm las --spars", ["--sparsity"]),
        ("python plotting.py --reb", ["--rebuild_results"]),
        ("python report.py --wa", ["--watch"]),
        ("python data.py --down", ["--download"]),
        ("python tune.py --tri", ["--trials"]),
    ],
)
def test_a_line_goes_on(tmp_path, line, answers):
    assert completed(line, tmp_path) == answers


@pytest.mark.parametrize("script", SCRIPTS)
def test_argcomplete_finds_its_mark(script):
    assert b"PYTHON_ARGCOMPLETE_OK" in (ROOT / script).read_bytes()[:1024]


def test_without_the_package_or_the_question_nothing_happens(monkeypatch):
    parser = object()
    assert completion.complete(parser) is parser
    monkeypatch.setenv("_ARGCOMPLETE", "1")
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    assert completion.complete(parser) is parser
