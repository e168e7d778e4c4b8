"""The studies in results/: their tables of runs are read, hold what the lists name, and give what the READMEs say."""

import itertools
import re
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT

import plotting
from fedmerge.config.options import all_options
from fedmerge.config.run_name import settings_of
from fedmerge.reporting import curves, run_status, runs
from fedmerge.reporting.run_tables import runs_of

sys.path.insert(0, str(ROOT / "results"))
import redraw

STUDIES = redraw.studies()
UNPUBLISHED = {"soups_bn_cifar10": 1, "tinyimagenet": 1}  # lines that make a start; "its own run is not among these"
PARTS = ("dataset", "part_sparsity", "part_bits", "seed")
NUMBER = re.compile(r"\d+(?:\.\d+)?(?: ± \d+\.\d+|x| of \d+)?")


@pytest.fixture(params=STUDIES, ids=lambda study: study.name)
def study(request):
    return request.param


def readme(study):
    return (study / "README.md").read_text()


def wanted(args):
    """Return {name: value} of the settings that a run of `args` has; weights that it starts from are not at hand."""
    elsewhere = {name for name, option in all_options().items() if not option.named}
    nothing_sent = {"shared_init"} if args.algorithm == "centralised" else set()
    settings = {name: v for name, v in settings_of(args).items() if name not in elsewhere | nothing_sent}
    return settings | {"init_weights": args.init_weights is None}


def is_run_of(mine, settings):
    before = {"shared_init": False, "head_bits": 32}  # what a record without it means
    settings = settings | {"init_weights": settings.get("init_weights") is None}
    return all(value == settings.get(name, before.get(name, value)) for name, value in mine.items())


@pytest.mark.slow
def test_every_line_of_its_list_has_its_run(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    source, matched, without = runs_of(study), set(), 0
    records = {name: source.record(name)["settings"] for name in source.names}
    for words in run_status.lines_of(study / "experiments.txt"):
        for flag, path in itertools.pairwise(words):
            if flag == "--init_weights":
                Path(path).touch()
        mine = wanted(run_status.parsed(words))
        found = {name for name, settings in records.items() if is_run_of(mine, settings)}
        assert len(found) <= 1
        matched |= found
        without += not found
    assert matched == records.keys()
    assert without == UNPUBLISHED.get(study.name, 0)
    assert (without == 1) == ("its own run is not among these" in readme(study))


@pytest.mark.slow
def test_every_run_is_read_and_its_tables_are_what_plotting_makes_of_them(study, tmp_path, monkeypatch, capsys):
    read = []

    def load(folder):
        read.append(runs.load_runs(folder))
        return read[-1]

    monkeypatch.setattr(plotting, "load_runs", load)
    for figure in ("draw_train_val", "draw_comparison"):
        monkeypatch.setattr(curves, figure, lambda *_, **__: None)
    assert redraw.draw(study, tmp_path) == 0
    ((found, foreign),) = read
    assert foreign == {}
    assert len(found) == int(re.search(r"\| runs \| (\d+),", readme(study))[1])
    kept = {path.name: path.read_text() for path in (study / "figures").glob("*.md")}
    assert kept
    assert {name: (tmp_path / name).read_text() for name in kept} == kept  # else: python results/redraw.py


def rows_of(text):
    """Return the rows of the Markdown tables in a text, lists of cells."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def cells_by_method(folder):
    """Return {method: the cells of its rows} of the tables in `figures` of a study."""
    found = {}
    for path in (folder / "figures").glob("*.md"):
        header, *rows = rows_of(path.read_text())
        for row in rows:
            found.setdefault(row[header.index("method")], set()).update(row)
    return found


def test_each_row_of_its_readme_has_the_numbers_of_one_series(study):
    linked = {study, *(study.parent / name for name in re.findall(r"\.\./(\w+)/README", readme(study)))}
    series = [cells for folder in linked for cells in cells_by_method(folder).values()]
    if study.name == "robust_digits":  # a row has a merge under all attacks
        series = [set().union(*series)]
    measured = [row for row in rows_of(readme(study).split("## Again")[0]) if any("±" in cell for cell in row)]
    assert measured or study.name == "personal_parts"
    for row in measured:
        numbers = {number for cell in row[1:] for number in NUMBER.findall(cell)}
        assert any(numbers <= cells for cells in series), row


def test_the_parts_are_those_of_its_table():
    study = ROOT / "results" / "personal_parts"
    source = runs_of(study)
    sizes = {record["settings"]["dataset"]: record["model"] for record in map(source.record, source.names)}
    rows = {tuple(row) for row in rows_of(readme(study))}
    for (dataset, kept, bits, seed), clients in pd.read_csv(study / "parts.csv").groupby(list(PARTS)):
        means = [f"{100 * clients[f'{what}_accuracy'].mean():.2f} %" for what in ("shared", "personal", "full")]
        less = 4 * sum(sizes[dataset].values()) * len(clients) / clients.bytes.sum()
        name = {"CIFAR10": "CIFAR-10", "DIGITS": "digits"}[dataset]
        assert (name, f"{100 * kept:g} % in {bits} bit{'s' * (bits > 1)}", str(seed), *means, f"{less:.1f}x") in rows


def test_the_minutes_are_those_of_the_runs(study):
    seconds = pd.read_csv(study / "rounds.csv.gz").train_seconds.sum()
    minutes = float(re.search(r"\| training \| ([\d.]+) minutes", readme(study))[1])
    assert minutes == pytest.approx(seconds / 60, rel=0.05)
    assert re.search(r"\| published \| 20\d\d-\d\d-\d\d", readme(study))


def test_every_study_is_in_the_index_and_every_link_leads_somewhere():
    index = (ROOT / "results" / "README.md").read_text()
    assert {f"{study.name}/README.md" for study in STUDIES} == set(re.findall(r"\]\((\w+/README\.md)\)", index))
    for path in (ROOT / "results").rglob("README.md"):
        assert path.parent == ROOT / "results" or "\n![" in path.read_text()
        for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path}: {link}"
