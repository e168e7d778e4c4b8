"""What holds the pages up to date: links, files that they name, tables made from the code, lengths."""

import ast
import json
import re

import pytest
from pages import OTHERS, PAGES, ROOT, blocks, examples, name_of, prose

from fedmerge.config.options import KINDS
from fedmerge.registry import SHELVES, plugin_files
from fedmerge.reporting import method_pages
from fedmerge.reporting.method_pages import kind_in_words

ALL = PAGES + OTHERS


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text()) <= 6000


def test_the_page_of_components_is_what_is_registered():
    assert not plugin_files()
    assert method_pages.PAGE.read_text() == method_pages.page(), "run: make docs"


def test_every_shelf_has_a_heading_and_every_component_a_section():
    assert set(method_pages.ABOUT) == set(SHELVES)
    page = method_pages.page()
    for shelf in SHELVES:
        for name in method_pages.specs(shelf):
            assert re.search(rf"^### .*`(--{shelf} )?{re.escape(name)}(:VALUE(,VALUE)*|NAME)?`", page, re.MULTILINE), (
                shelf,
                name,
            )


def anchors(page):
    """Return what the headings of a page are linked by, as GitHub has it: later ones of the same text are numbered."""
    found = []
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        anchor = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        found.append(f"{anchor}-{found.count(anchor)}" if anchor in found else anchor)
    return found


def links():
    return [(name_of(page), link) for page in ALL for link in re.findall(r"\]\(([^)\s]+)\)", prose(page))]


@pytest.mark.parametrize(("page", "link"), sorted({pair for pair in links() if "://" not in pair[1]}))
def test_a_link_leads_somewhere(page, link):
    path, _, anchor = link.partition("#")
    target = (ROOT / page).parent / path if path else ROOT / page
    assert target.exists(), f"{page}: there is no {path}"
    if anchor:
        assert anchor in anchors(target), f"{page}: {path} has no heading #{anchor}"


def test_every_page_is_in_the_index_and_in_the_readme():
    for index in (ROOT / "docs" / "README.md", ROOT / "README.md"):
        linked = {(index.parent / link).resolve() for page, link in links() if page == name_of(index)}
        books = sorted((ROOT / "docs").glob("*.ipynb")) if index.parent.name == "docs" else []
        missing = [page.name for page in (*PAGES[1:], *books) if page.resolve() not in linked]
        assert set(missing) <= {"README.md"}, index


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_files_in_backticks_are_there(page):
    """Those of the program: what has a folder of it before, or an ending that only its own files have."""
    named = set(re.findall(r"`((?:fedmerge|docs|tests|benchmarks|results)/[\w./-]*|\w+\.(?:py|sh))`", prose(page)))
    written = {path.rpartition("/")[2] for path in examples()}
    places = (ROOT, ROOT / "fedmerge", page.parent)
    missing = {name for name in named if not any((place / name).exists() for place in places)}
    tests = {name for name in missing if list((ROOT / "tests").rglob(name))}
    assert {name for name in missing - tests if name.rpartition("/")[2] not in written} == set()


def test_tests_that_security_names_are_there():
    text = (ROOT / "SECURITY.md").read_text()
    files = {path.name: path.read_text() for path in (ROOT / "tests").rglob("*.py")}
    named = re.findall(r"`(?:tests/)?(?:[\w/]*/)?((?:test|fuzz)_\w+\.py)?(?:::)?(test_\w+)?`", text)
    assert len(named) > 20
    for file, test in named:
        if file:
            assert file in files, file
        elif test:
            assert any(f"def {test}(" in source for source in files.values()), test
        if file and test:
            assert f"def {test}(" in files[file], (file, test)


def test_kinds_of_options_are_all_there_and_take_what_is_said():
    rows = re.findall(
        r"^\| ((?:`\w+`(?:, )?)+) \| (.*) \|$", (ROOT / "docs" / "extending.md").read_text(), re.MULTILINE
    )
    said = {kind: words for kinds, words in rows for kind in re.findall(r"`(\w+)`", kinds)}
    assert set(KINDS) <= set(said)
    for kind in set(KINDS) - {"partition"}:  # whose words are all that is registered
        assert said[kind] == kind_in_words(kind), kind


def test_the_round_in_the_architecture_is_the_programs():
    (block,) = blocks(ROOT / "docs" / "architecture.md", "python")
    source = [" ".join(line.split()) for line in (ROOT / "fedalg.py").read_text().splitlines()]
    assert [line for line in block.splitlines() if " ".join(line.split()) not in source] == []


def test_every_room_is_in_the_architecture():
    text = (ROOT / "docs" / "architecture.md").read_text()
    rooms = [path.name + "/" for path in (ROOT / "fedmerge").iterdir() if (path / "__init__.py").exists()]
    ground = [path.name for path in (ROOT / "fedmerge").glob("*.py") if path.name != "__init__.py"]
    assert [name for name in sorted(rooms + ground) if name not in text] == []


def test_python_on_the_pages_is_python():
    for page in PAGES:
        for block in blocks(page, "python"):
            ast.parse(block.replace("\nreturn ", "\n"))
    for book in (ROOT / "docs").glob("*.ipynb"):
        json.loads(book.read_text())
