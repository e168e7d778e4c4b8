"""The notebooks of docs/ are run from top to bottom, and lie there without what came out."""

import re
import shutil

import pytest
from pages import ROOT, copy_program

WHY = "notebooks are run by nbclient and ipykernel, of requirements-dev.txt"
nbclient, nbformat, _ = (pytest.importorskip(name, reason=WHY) for name in ("nbclient", "nbformat", "ipykernel"))

BOOKS = sorted((ROOT / "docs").glob("*.ipynb"))


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_a_notebook_lies_there_without_outputs(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert cell.cell_type == "markdown" or (cell.outputs, cell.execution_count) == ([], None)


@pytest.fixture
def outputs_of(tmp_path, monkeypatch):
    """A function of a notebook's name -> {source of a cell: its outputs}; it is run in a copy."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MPLBACKEND", raising=False)

    def go(name):
        docs = copy_program(tmp_path) / "docs"
        docs.mkdir()
        book = nbformat.read(shutil.copy(ROOT / "docs" / f"{name}.ipynb", docs), as_version=4)
        nbclient.NotebookClient(book, timeout=120, resources={"metadata": {"path": str(docs)}}).execute()
        return {cell.source: cell.outputs for cell in book.cells if cell.cell_type == "code"}

    return go


def said(outputs):
    """What a cell printed, which may come in several pieces, and its value."""
    return "".join(out.get("text", out.get("data", {}).get("text/plain", "")) for out in outputs)


def draws(outputs):
    return any("image/png" in output.get("data", {}) for out in outputs.values() for output in out)


def of(outputs, word):
    return next(out for source, out in outputs.items() if word in source)


@pytest.mark.slow
def test_first_steps(outputs_of):
    """The model's accuracy is that of the record, three mistakes are said, and a figure is drawn."""
    outputs = outputs_of("fedmerge")
    again, recorded = of(outputs, "run.model()")[-1].data["text/plain"].strip("()").split(", ")
    assert again == recorded
    refused = said(of(outputs, "InputError"))
    assert refused.count("\n") == 3
    assert "did you mean algorithm?" in refused
    assert draws(outputs)


@pytest.mark.slow
def test_an_algorithm_of_ones_own(outputs_of):
    """It is FedAvg where nothing is clipped, and is not where something is; its mistake is told."""
    outputs = outputs_of("own-algorithm")
    assert said(of(outputs, ".equals(")) == "(True, False)"
    assert "clipped.py: line 11: --clip_radius is of the kind 'positiv'" in said(of(outputs, "InputError"))
    assert draws(outputs)


@pytest.mark.slow
def test_from_bytes_to_a_figure(outputs_of):
    outputs = outputs_of("bytes-to-figure")
    times = [int(n) for n in re.findall(r"(\d+) times less", said(of(outputs, "payload_bytes(message)")))]
    assert times == sorted(times)
    assert 100 < times[-1] < 120
    assert "compact" in said(of(outputs, "less_in_all"))
    table = said(of(outputs, "plotting.py"))
    assert "difference to reference" in table
    assert "comparison.png" in table
    assert draws(outputs)
