"""The notebook of docs/ is run from top to bottom, and lies there without what came out."""

import shutil

import pytest
from pages import ROOT, copy_program

WHY = "the notebook is run by nbclient and ipykernel, of requirements-dev.txt"
nbclient, nbformat, _ = (pytest.importorskip(name, reason=WHY) for name in ("nbclient", "nbformat", "ipykernel"))

BOOK = ROOT / "docs" / "fedmerge.ipynb"


def test_the_notebook_lies_there_without_outputs():
    for cell in nbformat.read(BOOK, as_version=4).cells:
        assert cell.cell_type == "markdown" or (cell.outputs, cell.execution_count) == ([], None)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    """In a copy. The model's accuracy is that of the record, three mistakes are said, and a figure is drawn."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MPLBACKEND", raising=False)
    docs = copy_program(tmp_path) / "docs"
    docs.mkdir()
    book = nbformat.read(shutil.copy(BOOK, docs), as_version=4)
    nbclient.NotebookClient(book, timeout=120, resources={"metadata": {"path": str(docs)}}).execute()
    outputs = {cell.source: cell.outputs for cell in book.cells if cell.cell_type == "code"}
    judged = next(out for source, out in outputs.items() if "run.model()" in source)
    again, recorded = judged[-1].data["text/plain"].strip("()").split(", ")
    assert again == recorded
    refused = next(out for source, out in outputs.items() if "InputError" in source)
    assert "".join(out.text for out in refused).count("\n") == 3  # which may come in several pieces
    assert "did you mean algorithm?" in refused[0].text
    assert any("image/png" in output.get("data", {}) for out in outputs.values() for output in out)
