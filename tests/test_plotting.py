"""Tables against hand-worked numbers, series told apart, and figures that show something."""

import csv
import json

import matplotlib.image
import pandas as pd
import pytest

import plotting
import records
import utils


def write_run(folder, accuracies, seconds=2.0, **settings):
    """Leave what a finished run leaves: 4 clients a round send 1 MB each and receive 3 MB each."""
    args = utils.resolve({"n_epochs": len(accuracies), **settings})
    name = utils.run_name(args)
    rows = [
        {
            "epoch": i + 1,
            **{f"{part}_accs": a for part in ("train", "val", "test")},
            **{f"{part}_losses": 1 - a for part in ("train", "val", "test")},
            "bytes_up": 4e6,
            "bytes_down": 12e6,
            "train_seconds": seconds,
            "eval_seconds": 1.0,
            "kept_share": 1.0,
            "clients": 4,
        }
        for i, a in enumerate(accuracies)
    ]
    folder.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_csv(folder / f"{name}_metrics.csv", index=False)
    final = {
        "accuracy": accuracies[-1],
        "f1": accuracies[-1] / 2,
        "accuracy_last10": 0.5,
        "accuracy_best_val": 0.6,
        "bytes_up": 4e6 * len(rows),
        "bytes_down": 12e6 * len(rows),
    }
    records.write_json(
        folder / f"{name}.json",
        {
            "run": name,
            "finished": True,
            "settings": utils.settings_of(args),
            "final": final,
            "model": {"weights": 700_000, "buffers": 50_000},
            "partition": {"histograms": [[3, 0], [1, 7]]},
        },
    )
    return name


@pytest.fixture
def metrics(tmp_path):
    folder = tmp_path / "metrics"
    write_run(folder, [0.2, 0.4], seed=0)
    write_run(folder, [0.4, 0.8], seed=1, seconds=4.0)
    write_run(folder, [0.3, 0.7], algorithm="las")
    write_run(folder, [0.3, 0.6], algorithm="las", sparsity=0.01)
    write_run(folder, [0.1, 0.2], dirichlet=0.1)
    return folder


def test_the_summary_by_hand(metrics, tmp_path):
    tables, _ = plotting.compare(metrics, tmp_path / "out", "DIGITS")
    rows = tables["summary"]
    assert [(r["Dirichlet"], r["method"], r["seeds"]) for r in rows] == [
        ("0.1", "FedAvg", "1"),
        ("iid", "FedAvg", "2"),
        ("iid", "LaS-FL", "1"),
        ("iid", "LaS-FL sparsity=0.01", "1"),
    ]
    two = rows[1]
    assert two["accuracy %"] == "60.00 ± 28.28"  # 40 and 80
    assert two["F1 %"] == "30.00 ± 14.14"
    assert (two["MB up/round"], two["MB down/round"], two["s/round"]) == ("4.00", "12.00", "3.00")
    assert (two["less up"], two["less in all"]) == ("3.0x", "1.5x")  # a dense model is 3 MB; 4 of them each way
    assert rows[0]["accuracy %"] == "20.00"
    with open(tmp_path / "out" / "DIGITS_summary.csv", newline="") as file:
        assert list(csv.DictReader(file)) == rows
    markdown = (tmp_path / "out" / "DIGITS_summary.md").read_text().splitlines()
    assert len(markdown) == 2 + len(rows)
    assert "| 60.00 ± 28.28 |" in markdown[3]
    latex = (tmp_path / "out" / "DIGITS_summary.tex").read_text()
    assert r"60.00 $\pm$ 28.28" in latex
    assert r"accuracy \%" in latex


def test_the_summary_tells_the_accuracy_after_rounds_asked_for(metrics, tmp_path):
    tables, _ = plotting.compare(metrics, tmp_path / "out", "DIGITS", at=[1, 7])
    row = tables["summary"][1]
    assert (row["after round 1 %"], row["after round 7 %"]) == ("30.00 ± 14.14", "")  # 20 and 40; there is no seventh


def test_what_it_took_to_reach_fedavgs_accuracy_by_hand(tmp_path):
    """FedAvg ends at 0.5, 0.75 and 1, so that LaS-FL's 0.7425 is the target exactly; NaN is no evaluation."""
    folder, nan = tmp_path / "metrics", float("nan")
    write_run(folder, [0.5, 0.7, 0.6, 1.0], seed=2, n_epochs=3)
    write_run(folder, [0.5, 0.8, 0.5], seed=0)
    write_run(folder, [0.5, 0.6, 0.75], seed=1)
    write_run(folder, [0.5, nan, 0.99 * 2.25 / 3, 0.6], seed=0, algorithm="las")
    write_run(folder, [0.5, nan, 0.7, 0.6], seed=1, algorithm="las")
    write_run(folder, [0.5, 0.6, 0.6], algorithm="fedprox")
    write_run(folder, [0.99], algorithm="fedavg", value_bits=8)
    write_run(folder, [0.99], algorithm="fedavg", shared_init=True)
    rows = plotting.compare(folder, tmp_path / "out", "DIGITS")[0]["to_target"]
    rows = [row for row in rows if "value_bits=8" not in row["method"] and "shared_init" not in row["method"]]
    assert {row["of"] for row in rows} == {"FedAvg n_epochs=3"}
    assert [r["method"] for r in rows] == ["FedAvg n_epochs=3", "FedProx n_epochs=3", "LaS-FL n_epochs=4"]
    assert {r["target %"] for r in rows} == {"74.25"}
    assert [r["seeds there"] for r in rows] == ["3 of 3", "0 of 1", "1 of 2"]
    assert [r["rounds"] for r in rows] == ["3.00 ± 1.00", "", "3.00"]
    assert [r["MB up"] for r in rows] == ["12.00 ± 4.00", "", "12.00"]
    assert [r["MB down"] for r in rows] == ["36.00 ± 12.00", "", "36.00"]
    assert [r["MB both"] for r in rows] == ["48.00 ± 16.00", "", "48.00"]
    assert [r["less in all"] for r in rows] == ["1.0x", "", "1.0x"]
    with open(tmp_path / "out" / "DIGITS_to_target.csv", newline="") as file:
        assert [row for row in csv.DictReader(file) if row in rows] == rows


def test_without_fedavg_there_is_no_target(tmp_path):
    write_run(tmp_path / "metrics", [0.5], algorithm="las")
    tables, paths = plotting.compare(tmp_path / "metrics", tmp_path / "out", "DIGITS")
    assert tables["to_target"] == []
    assert not [path for path in paths if "target" in path.name]


def test_labels_say_what_is_not_usual_for_the_algorithm(tmp_path):
    folder = tmp_path / "metrics"
    for settings in ({}, {"value_bits": 8}, {"algorithm": "stc"}, {"algorithm": "topk", "sparsity": 0.05}):
        write_run(folder, [0.5], **settings)
    write_run(folder, [0.5], algorithm="las", preset="compact")
    write_run(folder, [0.5], algorithm="las", preset="compact", sparsity=0.02)
    old = write_run(folder, [0.5], seed=5)
    record = json.loads((folder / f"{old}.json").read_text())
    del record["settings"]["value_bits"]  # as before there was such a setting
    record["settings"]["gone"] = 3
    (folder / f"{old}.json").write_text(json.dumps(record))
    series = plotting.group_series(plotting.load_runs(folder))
    assert {label: len(members) for label, members in series.items()} == {
        "FedAvg": 1,
        "FedAvg value_bits=8": 1,
        "FedAvg gone=3": 1,
        "LaS-FL preset=compact": 1,
        "LaS-FL preset=compact sparsity=0.02": 1,
        "top-k sparsity=0.05": 1,
        "STC": 1,
    }


def test_mean_and_deviation_over_seeds_by_hand(metrics):
    runs = [r for r in plotting.load_runs(metrics, "DIGITS") if r.settings["dirichlet"] == "iid"]
    line = plotting.over_seeds(plotting.group_series(runs)["FedAvg"], "test_accs")
    assert line["value"].tolist() == pytest.approx([0.3, 0.6])
    assert line["std"].tolist() == pytest.approx([0.1414, 0.2828], abs=1e-3)
    assert line["up"].tolist() == [4, 8]
    assert line["down"].tolist() == [12, 24]
    assert line["both"].tolist() == [16, 32]


def test_every_level_gets_its_figures_and_they_are_not_blank(metrics, tmp_path):
    _, paths = plotting.compare(metrics, tmp_path / "out", "DIGITS")
    figures = [path for path in paths if path.suffix == ".png"]
    assert [f.name for f in figures] == [
        f"DIGITS_{level}_{kind}.png" for level in ("0.1", "iid") for kind in ("comparison", "train_val")
    ]
    for figure in figures:
        assert matplotlib.image.imread(figure).std() > 0.05
        assert figure.with_suffix(".pdf").stat().st_size > 5000


def test_lines_carry_n_and_every_round(metrics):
    axes = plotting.plt.subplots()[1]
    runs = [r for r in plotting.load_runs(metrics, "DIGITS") if r.settings["dirichlet"] == "iid"]
    plotting.draw_lines(axes, plotting.group_series(runs), "test_accs", "both", "MB", "accuracy")
    labels = [line.get_label() for line in axes.lines]
    assert "FedAvg (n=2)" in labels
    assert len({(line.get_linestyle(), line.get_marker(), line.get_color()) for line in axes.lines}) == 3
    assert axes.lines[0].get_xdata().tolist() == [16, 32]


def test_a_runs_own_figures(metrics, tmp_path):
    name = write_run(metrics, [0.1, 0.5, 0.7])
    plotting.plot_run(metrics, name, tmp_path / "plots")
    for kind in ("accuracy_curves", "loss_curves", "partition"):
        assert matplotlib.image.imread(tmp_path / "plots" / f"{name}_{kind}.png").std() > 0.05


def test_unfinished_and_foreign_files_are_left_out(metrics, capsys):
    n = len(plotting.load_runs(metrics))
    (metrics / "foreign.json").write_text('{"hello": 1}')
    (metrics / "list.json").write_text("[1]")
    (metrics / "torn.json").write_text('{"finished": tr')
    bad = {
        "csv": "a,b\n1,2\n",
        "text": None,
        "empty": None,
        "final": {"final": {}},
        "level": {},
        "settings": {"settings": {}},
    }
    for lr, (kind, change) in enumerate(bad.items(), start=1):
        name = write_run(metrics, [0.1, 0.2], lr=float(lr))
        table, record = metrics / f"{name}_metrics.csv", metrics / f"{name}.json"
        if kind == "csv":
            table.write_text(change)
        elif kind == "text":
            table.write_text(table.read_text().replace("0.1", "many"))
        elif kind == "empty":
            table.write_text(table.read_text().splitlines()[0] + "\n")
        else:
            content = json.loads(record.read_text())
            if kind == "level":
                change = {"settings": content["settings"] | {"dirichlet": "weird"}}
            record.write_text(json.dumps(content | change))
    path = metrics / f"{write_run(metrics, [0.1, 0.5, 0.7])}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"finished": False}))
    assert len(plotting.load_runs(metrics)) == n
    warned = capsys.readouterr().err
    assert warned.count("left out") == 3 + len(bad)
    assert all(f"{name}.json: left out" in warned for name in ("foreign", "list", "torn"))


def test_the_program_prints_the_table_or_says_there_is_none(metrics, tmp_path, program):
    done = program("--csv_dir", metrics, "--output_dir", tmp_path / "out", script="plotting.py")
    assert done.returncode == 0, done.stderr
    assert "60.00 ± 28.28" in done.stdout
    done = program("--csv_dir", metrics, "--dataset", "CIFAR10", script="plotting.py")
    assert done.returncode == 2
    assert "no finished run of CIFAR10" in done.stderr
    assert program("--csv_dir", tmp_path / "none", script="plotting.py").returncode == 2


def test_runs_with_all_data_in_one_place_are_a_line_across_every_figure(metrics, tmp_path, monkeypatch):
    write_run(metrics, [0.5, 0.9], algorithm="centralised")
    data_lines = []
    monkeypatch.setattr(plotting, "finish", lambda figure, axes, *_: data_lines.append(axes.get_lines()))
    tables, _ = plotting.compare(metrics, tmp_path / "out", "DIGITS")
    assert len(data_lines) == 4  # two figures of two levels
    for lines in data_lines[::2]:
        assert lines[-1].get_label() == "centralised (n=1)"
        assert list(lines[-1].get_ydata()) == [0.9, 0.9]
    assert [(r["Dirichlet"], r["method"]) for r in tables["summary"]][-1] == ("", "centralised")


def test_what_sent_nothing_is_not_less_by_any_factor():
    sent = pd.Series([2.0, 4.0])
    assert plotting.times(pd.Series([8.0, 8.0]), sent) == "3.0x"
    assert plotting.times(pd.Series([8.0, 8.0]), 0 * sent) == ""


def test_a_legend_of_long_labels_stays_in_the_figure(monkeypatch):
    monkeypatch.setattr(plotting, "save", lambda *_: None)
    figure, axes = plotting.plt.subplots(figsize=(9, 6))
    for i in range(5):
        axes.plot([0, 1], label=f"LSS {i} aff_coeff=0.1 average_received=False div_coeff=0.1 later_share=0.125 " * 2)
    plotting.finish(figure, axes, {}, "x", "title")
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    plotting.plt.close(figure)
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert box.y0 >= 0
