"""Tables against hand-worked numbers, and what is in them against what LaTeX, Markdown and terminals make of it."""

import csv
import re

import pandas as pd
import pytest
from made_runs import change, compared, loaded, write_run

import plotting
from fedmerge.reporting import series, tables


@pytest.fixture(autouse=True)
def without_figures(monkeypatch):
    monkeypatch.setattr(plotting, "draw", lambda *_: [])


@pytest.fixture
def metrics(tmp_path):
    folder = tmp_path / "metrics"
    write_run(folder, [0.2, 0.4], seed=0, validation=[0.3, 0.5])
    write_run(folder, [0.4, 0.8], seed=1, validation=[0.5, 0.4], seconds=4.0)
    write_run(folder, [0.3, 0.7], algorithm="las")
    write_run(folder, [0.3, 0.6], algorithm="las", sparsity=0.01)
    write_run(folder, [0.1, 0.2], dirichlet=0.1)
    return folder


def test_the_summary_by_hand(metrics, tmp_path):
    rows = compared(metrics, tmp_path / "out")[0]["summary"]
    assert [(r["split"], r["method"], r["seeds"], r["sparsity"]) for r in rows] == [
        ("0.1", "FedAvg", "1", ""),
        ("iid", "FedAvg", "2", ""),
        ("iid", "LaS-FL sparsity=0.01", "1", "0.01"),
        ("iid", "LaS-FL sparsity=0.2", "1", "0.2"),
    ]
    two = rows[1]
    assert two["test acc. %, last round"] == "60.00 ± 28.28"  # 40 and 80
    assert two["test acc. %, all rounds"] == "45.00 ± 21.21"  # 30 and 60
    assert two["test acc. %, round of best val."] == "40.00 ± 0.00"  # the second, and the first
    assert two["val. acc. %, last round"] == "45.00 ± 7.07"
    assert two["val. acc. %, all rounds"] == "42.50 ± 3.54"
    assert two["val. acc. %, best round"] == "50.00 ± 0.00"
    assert two["test F1 %, last round"] == "30.00 ± 14.14"
    assert (two["MB up/round"], two["MB down/round"], two["s/round"]) == ("4.00", "12.0", "3.00")
    assert (two["less up"], two["less in all"]) == ("3.0x", "1.5x")  # a dense model is 3 MB; 4 of them each way
    assert rows[0]["test acc. %, last round"] == "20.00"
    assert all(re.match("test|val|dataset|split|method|sparsity|rounds|seeds|diff|MB|less|s/", name) for name in two)
    with open(tmp_path / "out" / "DIGITS_summary.csv", newline="") as file:
        assert list(csv.DictReader(file)) == rows
    markdown = (tmp_path / "out" / "DIGITS_summary.md").read_text().splitlines()
    assert markdown[0] == "DIGITS, summary:"
    assert "| 60.00 ± 28.28 |" in markdown[5]
    assert "- Bytes: a client's first download" in markdown[-1] or "- Bytes: nobody downloads" in markdown[-1]
    latex = (tmp_path / "out" / "DIGITS_summary.tex").read_text()
    assert r"60.00 $\pm$ 28.28" in latex
    assert r"\textbf{70.00}" in latex  # the best of iid
    assert r"\textbf{60.00" not in latex
    assert "; less up: 3.0x; less in all: 1.5x" in latex  # of all rows
    assert tables._latex("3.0x") == r"$3.0\times$"
    assert r"test acc. \%, last round" in latex


def test_the_summary_tells_the_accuracy_after_rounds_asked_for(metrics, tmp_path):
    row = compared(metrics, tmp_path / "out", "--at", 1, 7)[0]["summary"][1]
    assert row["test acc. %, round 1"] == "30.00 ± 14.14"  # 20 and 40
    assert row["test acc. %, round 7"] == ""  # there is none


def test_paired_differences_by_hand(tmp_path):
    for seed, (plain, other) in enumerate([(0.5, 0.52), (0.6, 0.61), (0.7, 0.73)]):
        write_run(tmp_path, [plain], seed=seed)
        write_run(tmp_path, [other], seed=seed, algorithm="las")
    write_run(tmp_path, [0.9], seed=3, algorithm="las")  # no pair for it
    write_run(tmp_path, [0.9], seed=0, algorithm="stc", shared_init=False)
    rows = compared(tmp_path, tmp_path / "out", "--mix")[0]["summary"]
    found = {row["method"].split()[0]: row["difference to reference, points"] for row in rows}
    # 2, 1 and 3 points: mean 2, deviation 1; t of two degrees of freedom is 4.3027, over the root of three
    assert found == {"FedAvg": "", "LaS-FL": "+2.00 [-0.48, +4.48], 3 seeds", "STC": ""}


def test_what_it_took_to_reach_the_references_accuracy_by_hand(tmp_path):
    """FedAvg ends at 0.5, 0.75 and 1, so that LaS-FL's 0.7425 is the target exactly; NaN is no evaluation."""
    folder, nan = tmp_path / "metrics", float("nan")
    write_run(folder, [0.5, 0.7, 0.6, 1.0], seed=2)
    write_run(folder, [0.5, 0.8, 0.5, 0.5], seed=0)
    write_run(folder, [0.5, 0.6, 0.75, 0.75], seed=1)
    write_run(folder, [0.5, nan, 0.99 * 2.25 / 3, 0.6], seed=0, algorithm="las")
    write_run(folder, [0.5, nan, 0.7, 0.6], seed=1, algorithm="las")
    write_run(folder, [0.5, 0.6, 0.6, 0.6], algorithm="fedprox")
    write_run(folder, [0.99, 0.99, 0.99, 0.99], value_bits=8)
    rows = compared(folder, tmp_path / "out")[0]["to_target"]
    rows = [row for row in rows if "value_bits=8" not in row["method"]]
    assert {row["reference"] for row in rows} == {"FedAvg value_bits=32"}
    assert [r["method"] for r in rows] == ["FedAvg value_bits=32", "FedProx", "LaS-FL"]
    assert {r["target test acc. %"] for r in rows} == {"74.25"}
    assert [r["seeds there"] for r in rows] == ["3 of 3", "0 of 1", "1 of 2"]
    assert [r["rounds"] for r in rows] == ["3.00 ± 1.00", "", "3.00"]
    assert [r["MB up"] for r in rows] == ["12.0 ± 4.0", "", "12.0"]
    assert [r["MB down"] for r in rows] == ["36.0 ± 12.0", "", "36.0"]
    assert [r["MB both"] for r in rows] == ["48.0 ± 16.0", "", "48.0"]
    assert [r["less in all"] for r in rows] == ["1.0x", "", "0.7x"]  # of seed 0, FedAvg is there after round 2
    with open(tmp_path / "out" / "DIGITS_to_target.csv", newline="") as file:
        assert [row for row in csv.DictReader(file) if row in rows] == rows


def test_the_target_names_its_reference_wherever_it_stands(tmp_path):
    for lr, validation in ((0.01, 0.5), (0.05, 0.8)):
        write_run(tmp_path, [0.9], validation=[validation], lr=lr)
    compared(tmp_path, tmp_path / "out")
    for kind in ("md", "tex"):
        first = (tmp_path / "out" / f"DIGITS_to_target.{kind}").read_text().splitlines()[0]
        assert (
            "reference: FedAvg lr=0.05 (of plain FedAvg, the one whose best round has the best validation accuracy)"
            in first
        )
    rows = compared(tmp_path, tmp_path / "out", "--reference", "FedAvg lr=0.01")[0]["to_target"]
    assert {row["reference"] for row in rows} == {"FedAvg lr=0.01"}


def test_without_fedavg_there_is_no_target(tmp_path):
    write_run(tmp_path / "metrics", [0.5], algorithm="las")
    made, paths = compared(tmp_path / "metrics", tmp_path / "out")
    assert set(made) == {"summary"}
    assert not [path for path in paths if "target" in path]


def test_runs_that_did_not_finish_have_rows(tmp_path):
    write_run(tmp_path, [0.5, 0.6], seed=0)
    change(tmp_path, write_run(tmp_path, [0.5, 0.1], seed=1), finished=False, failed="the loss is not finite")
    change(tmp_path, write_run(tmp_path, [0.4], lr=9.0, n_epochs=2), finished=False, failed="the loss is not finite")
    rows = compared(tmp_path, tmp_path / "out")[0]["summary"]
    assert [row["seeds"] for row in rows] == ["1 of 2, 1 diverged", "0 of 1, 1 diverged"]
    assert [row["test acc. %, last round"] for row in rows] == ["60.00", ""]
    rows = compared(tmp_path, tmp_path / "out")[0]["to_target"]
    assert [row["seeds there"] for row in rows] == ["1 of 2", "0 of 1"]
    rows = compared(tmp_path, tmp_path / "out", "--unfinished")[0]["summary"]
    assert [row["test acc. %, last round"] for row in rows] == ["60.00", "10.00", "40.00"]
    assert [row["rounds"] for row in rows] == ["2", "2", "1 of 2"]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.0262, "0.0262"), (0.00875, "0.00875"), (34.4976, "34.5"), (0.9996, "1.00"), (1234, "1230"), (0, "0")],
)
def test_three_digits(number, text):
    assert tables.three_digits(number) == text


def test_what_sent_nothing_is_not_less_by_any_factor():
    sent = pd.Series([2.0, 4.0])
    assert tables.times(pd.Series([8.0, 8.0]), sent) == "3.0x"
    assert tables.times(pd.Series([8.0, 8.0]), 0 * sent) == ""


def test_nothing_in_a_cell_is_taken_for_latex_markdown_or_a_terminals_commands():
    evil = "\\input{x} $a$ ^^M~#&%_|<b>\n\\write\x1b[2J"
    table = tables.Table(evil, [{"dataset": "D", "split": evil, "method": evil}], [evil])
    latex = table.latex()
    assert latex.count("\n") == 9
    cell = (
        r"\textbackslash{}input\{x\} \$a\$ \textasciicircum{}\textasciicircum{}M\textasciitilde{}\#\&\%\_|<b>"
        r"\textbackslash{}n\textbackslash{}write\textbackslash{}x1b[2J"
    )
    assert rf"D & {cell} & {cell} \\" in latex
    assert all("\x1b" not in text for text in (latex, table.markdown(), table.text()))
    row = table.markdown().splitlines()[4]
    assert re.sub(r"\\\|", "", row).count("|") == 4
    assert "<b>" not in table.markdown()
    assert len(table.text().splitlines()) == 4


def test_a_label_of_ones_own_is_in_the_tables(metrics, tmp_path):
    rows = compared(metrics, tmp_path / "out", "--label", "LaS-FL sparsity=0.2=ours", "--methods", "las", "fedavg")[0]
    assert [row["method"] for row in rows["summary"]] == ["FedAvg", "LaS-FL sparsity=0.01", "ours", "FedAvg"]
    assert series.group_series(loaded(metrics))[-1].label == "LaS-FL sparsity=0.2"


@pytest.mark.parametrize("width", [60, 120])
def test_a_terminal_gets_blocks_of_columns_that_fit(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    names = [f"column {i}" for i in range(20)]
    rows = [{"dataset": "D", "split": "iid", "method": m, **dict.fromkeys(names, m), "nothing": ""} for m in "ab"]
    title, *lines = tables.Table("D, summary", rows, ["a note"]).text().splitlines()
    assert (title, lines.pop()) == ("D, summary:", "a note")
    assert max(map(len, lines)) <= width
    heads = [line for line in lines if line.startswith("split  method")]
    assert len(heads) == (5 if width == 60 else 3)
    assert re.findall(r"column \d+", " ".join(heads)) == names
    assert "nothing" not in " ".join(lines)


def test_factors_are_over_the_seeds_of_which_both_got_there(tmp_path):
    """LaS-FL gets there on seed 1 only, FedAvg on seed 0 only: one seed's bytes by another's say nothing."""
    folder = tmp_path / "metrics"
    write_run(folder, [0.9, 0.9], seed=0)
    write_run(folder, [0.3, 0.3], seed=1)
    write_run(folder, [0.3, 0.3], seed=0, algorithm="las")
    write_run(folder, [0.9, 0.3], seed=1, algorithm="las")
    rows = {row["method"]: row for row in compared(folder, tmp_path / "out")[0]["to_target"]}
    assert rows["LaS-FL"]["seeds there"] == "1 of 2"
    assert (rows["LaS-FL"]["less up"], rows["LaS-FL"]["less in all"]) == ("", "")
    assert rows["FedAvg"]["less up"] == "1.0x"


def test_a_reference_need_not_be_drawn(tmp_path):
    folder = tmp_path / "metrics"
    for seed in (0, 1):
        write_run(folder, [0.5, 0.8 + seed / 10], seed=seed)
        write_run(folder, [0.5, 0.9], seed=seed, algorithm="las")
    made = compared(folder, tmp_path / "out", "--methods", "las", "--reference", "FedAvg")[0]
    assert [row["method"] for row in made["summary"]] == ["LaS-FL"]
    assert made["summary"][0]["difference to reference, points"].startswith("+5.00 [")
    made = compared(folder, tmp_path / "out", "--methods", "las")[0]
    assert "to_target" not in made


def test_the_last_ten_rounds_are_told_of_runs_that_have_them(tmp_path):
    write_run(tmp_path, [0.2] * 9)
    write_run(tmp_path, [0.3] * 9, lr=0.5)
    few = series.group_series(loaded(tmp_path))
    assert tables.averaged(few)[0] == "all rounds"
    assert tables.averaged(few)[1].startswith("All rounds: the mean of the evaluations in them. Round")
    write_run(tmp_path, [0.2] * 10, algorithm="fedprox")
    mixed = series.group_series(loaded(tmp_path))
    assert tables.averaged(mixed)[0] == "last 10 rounds"
    assert "in them, or of a run with fewer, in all of them." in tables.averaged(mixed)[1]
    long = [of for of in mixed if of.algorithm == "fedprox"]
    assert "fewer" not in tables.averaged(long)[1]


def test_in_latex_what_is_the_same_in_all_rows_is_told_above(tmp_path):
    for seed in (0, 1):
        for level in ("iid", 0.1):
            write_run(tmp_path / "m", [0.2, 0.4], seed=seed, dirichlet=level)
            write_run(tmp_path / "m", [0.3, 0.5 + seed / 10], seed=seed, dirichlet=level, lr=0.5, local_steps=3)
    compared(tmp_path / "m", tmp_path)
    for name in ("summary", "to_target"):
        comments, rows = (tmp_path / f"DIGITS_{name}.tex").read_text().split(r"\begin{tabular}")
        assert "\n% In all rows: dataset: DIGITS; " in comments
        assert all(4 < row.count("&") + 1 < 10 for row in rows.splitlines() if "&" in row)
    with open(tmp_path / "DIGITS_summary.csv", newline="") as file:
        assert len(next(csv.reader(file))) > 18
