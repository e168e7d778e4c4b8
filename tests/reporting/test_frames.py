"""load_runs, load_rounds and compare: what a notebook gets of a folder."""

import doctest

import pytest
from conftest import ROOT
from made_runs import change, write_run

import fedmerge
from fedmerge.errors import InputError
from fedmerge.reporting import curves, frames


@pytest.fixture
def folder(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / "metrics", [0.2, 0.4 + 0.2 * seed], seed=seed)
    write_run(tmp_path / "metrics", [0.1, 0.3], algorithm="las", sparsity=0.1)
    write_run(tmp_path / "metrics", [0.5, 0.5], algorithm="centralised", n_clients=1, participation=1.0)
    return tmp_path / "metrics"


def test_the_examples_in_their_docstrings(monkeypatch):
    monkeypatch.chdir(ROOT)
    done = doctest.testmod(frames)
    assert done.attempted > 4
    assert not done.failed


def test_a_row_a_run_by_hand(folder):
    runs = fedmerge.load_runs(folder)
    assert runs["run"].is_unique
    assert runs.columns[:3].tolist() == ["run", "state", "split"]
    fedavg = runs.query("algorithm == 'fedavg'")
    assert fedavg["accuracy"].tolist() == pytest.approx([0.4, 0.6])
    assert fedavg["bytes_up"].tolist() == [8e6, 8e6]
    assert fedavg["seconds"].tolist() == [4.0, 4.0]
    assert fedavg["less_up"].tolist() == [3.0, 3.0]  # 8 models of 3 MB
    assert fedavg["less_in_all"].tolist() == [1.5, 1.5]
    assert fedavg["sparsity"].isna().all()
    assert runs.query("algorithm == 'las'")["sparsity"].tolist() == [0.1]
    assert runs.query("algorithm == 'centralised'")["less_up"].isna().all()


def test_an_option_of_a_plugin_that_is_called_like_a_figure_is_told_apart(folder):
    change(folder, write_run(folder, [0.2, 0.4], algorithm="stc"), settings={"state": 3, "rounds": 7})
    runs = fedmerge.load_runs(folder)
    assert runs.columns.is_unique
    assert runs["settings.rounds"].dropna().tolist() == [7]


def test_a_row_a_round(folder):
    rounds = fedmerge.load_rounds(folder.parent)
    assert rounds.groupby("run").size().tolist() == [2, 2, 2, 2]
    assert rounds["epoch"].tolist() == [1, 2] * 4
    assert rounds["bytes_up"].sum() == 3 * 8e6
    last = rounds[rounds.epoch == 2]
    assert last.bytes_up_total.tolist() == rounds.groupby("run", sort=False).bytes_up.sum().tolist()
    assert (rounds.bytes_down_total >= rounds.bytes_down).all()


def test_a_folder_without_runs_is_empty_and_none_is_refused(tmp_path):
    assert len(fedmerge.load_runs(tmp_path)) == len(fedmerge.load_rounds(tmp_path)) == 0
    assert fedmerge.load_runs(tmp_path).groupby(["algorithm", "split"]).accuracy.mean().empty
    with pytest.raises(InputError, match="is no folder"):
        fedmerge.load_runs(tmp_path / "none")
    with pytest.raises(InputError, match="there are no runs"):
        fedmerge.compare(tmp_path)


def test_a_figure_has_the_lines_that_are_asked_for(folder):
    figure = fedmerge.compare(folder, labels={"LaS-FL sparsity=0.1": "ours"}, panels=["round", "up"], ylim=(0, 90))
    assert len(figure.axes) == 2
    assert figure.axes[0].get_ylim() == (0, 90)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["FedAvg (n=2)", "ours (n=1)", "centralised (n=1)"]
    assert figure.axes[0].lines[0].get_ydata().tolist() == [20.0, 50.0]
    across = figure.axes[0].lines[-1]  # of all data in one place, which sends nothing
    assert (list(across.get_xdata()), list(across.get_ydata())) == ([0, 1], [50.0, 50.0])
    assert curves.plt.get_fignums() == []  # it is the caller's
    only = fedmerge.compare(folder, methods="las")
    assert len(only.axes[0].lines) == 1


def test_what_cannot_be_drawn_is_an_exception(folder):
    write_run(folder, [0.2, 0.4], dirichlet=0.1)
    with pytest.raises(InputError, match=r"split: there are several, give one of .*iid"):
        fedmerge.compare(folder)
    assert fedmerge.compare(folder, split=0.1)
    with pytest.raises(InputError, match=r"split 0\.5: there is none"):
        fedmerge.compare(folder, split=0.5)
    with pytest.raises(InputError, match=r"dataset 'digits': there is none \(did you mean DIGITS\?\)"):
        fedmerge.compare(folder, dataset="digits")
    for panels in ("round", ["rounds"]):
        with pytest.raises(InputError, match="panels: 'round"):
            fedmerge.compare(folder, split="iid", panels=panels)
    with pytest.raises(InputError, match="'mine'"):
        fedmerge.compare(folder, split="iid", methods=["mine"])
    change(folder, write_run(folder, [0.2, 0.4], dirichlet=7), finished=False)
    with pytest.raises(InputError, match="no finished run of DIGITS, 7"):
        fedmerge.compare(folder, split="7")
    assert fedmerge.compare(folder, split="7", unfinished=True)
