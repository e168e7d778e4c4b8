"""The documentation as a site, and the page that is made from the studies."""

import importlib.util
import re
import runpy
import subprocess
import sys

import pytest
from pages import ROOT

from fedmerge.reporting import leaderboard

SITE = ROOT / "docs" / "site.py"
needs_mkdocs = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings")),
    reason="needs the packages of requirements-docs.txt",
)


@needs_mkdocs
@pytest.mark.slow
def test_the_site_has_no_link_that_leads_nowhere_and_asks_nothing_of_a_network(tmp_path):
    done = subprocess.run([sys.executable, SITE, tmp_path / "site"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        text = page.read_text()
        asked = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="?(https?://[^"\s>]+)', text)
        assert not [url for url in asked if "canonical" not in url], page
    api = (tmp_path / "site" / "docs" / "api.html").read_text()
    assert "load_runs" in api
    assert "Return the runs of a folder, a row each" in api
    gallery = (tmp_path / "site" / "docs" / "gallery.html").read_text()
    assert gallery.count("<img") == len(list(ROOT.glob("results/*/figures/*.png")))


def test_pages_keep_their_folders_and_take_along_what_they_link_to(tmp_path):
    runpy.run_path(str(SITE))["gather"](tmp_path)
    assert (tmp_path / "docs" / "communication.md").exists()
    assert (tmp_path / "fedmerge" / "wire" / "message.py").exists()  # which a page links to
    assert "](../fedmerge/wire/message.py)" in (tmp_path / "docs" / "communication.md").read_text()
    assert not (tmp_path / "fedmerge" / "api.py").exists()


def test_the_leaderboard_has_every_study_and_what_its_runs_say():
    page = leaderboard.PAGE.read_text()
    for study in leaderboard.studies():
        assert f"[{study.name}](../results/{study.name}/README.md)" in page, "run: make docs"
    for _, section in leaderboard.sections_of(leaderboard.RESULTS / "cifar10_cnn"):
        assert section in page, "run: make docs"
    assert re.search(r"\| LaS-FL preset=compact \| 3 \| 65\.15 ± 0\.15 \|", page)  # as the README has it


def test_the_best_comes_first():
    for table in leaderboard.PAGE.read_text().split("\n## ")[1:]:
        reached = [float(found) for found in re.findall(r"^\| [^|]+ \| [^|]+ \| (\d+\.\d+)", table, re.M)]
        assert reached == sorted(reached, reverse=True)
        assert reached
