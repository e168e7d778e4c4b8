"""Figures that show something, within what is possible, with axes and legends that can be read."""

import matplotlib.colors
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from made_runs import change, compared, loaded, write_run

import plotting
from fedmerge.reporting import curves, run_figures
from fedmerge.reporting import series as grouping


@pytest.fixture
def metrics(tmp_path):
    folder = tmp_path / "metrics"
    write_run(folder, [0.2, 0.4], seed=0)
    write_run(folder, [0.4, 0.8], seed=1)
    write_run(folder, [0.3, 0.7], algorithm="las")
    write_run(folder, [0.3, 0.6], algorithm="las", sparsity=0.01)
    write_run(folder, [0.1, 0.2], dirichlet=0.1)
    return folder


@pytest.fixture
def finished(monkeypatch):
    """The figures that would have been saved, as (figure, title, notes)."""
    figures = []
    monkeypatch.setattr(
        curves, "finish", lambda figure, axes, path, title, notes: figures.append((figure, title, notes))
    )
    yield figures
    curves.plt.close("all")


def iid(folder):
    return [series for series in grouping.group_series(loaded(folder)) if series.level.name == "iid"]


def test_mean_and_range_or_deviation_over_seeds_by_hand(metrics):
    line = curves.over_seeds(iid(metrics)[0].runs, "test_accs")
    assert line["value"].tolist() == pytest.approx([30, 60])
    assert line["low"].tolist() == pytest.approx([20, 40])  # two seeds: their range
    assert line["high"].tolist() == pytest.approx([40, 80])
    assert line["up"].tolist() == [4, 8]
    assert line["down"].tolist() == [12, 24]
    assert line["both"].tolist() == [16, 32]
    write_run(metrics, [0.3, 0.6], seed=2)
    line = curves.over_seeds(iid(metrics)[0].runs, "test_accs")
    assert (line["high"] - line["value"]).tolist() == pytest.approx([10, 20])


def test_bands_stay_within_the_possible(tmp_path):
    for seed, accuracy in enumerate((1.0, 1.0, 0.4)):
        write_run(tmp_path, [accuracy], seed=seed)
    runs = iid(tmp_path)[0].runs
    assert curves.over_seeds(runs, "test_accs")["high"].tolist() == [100]
    assert curves.over_seeds(runs, "test_losses")["low"].tolist() == [0]
    assert curves.over_seeds(runs, "test_losses")["high"].iloc[0] > 0.5


@pytest.mark.slow
def test_every_level_gets_its_figures_and_they_are_not_blank(metrics, tmp_path):
    _, paths = compared(metrics, tmp_path / "out")
    figures = [path for path in paths if path.endswith(".png")]
    names = [f"DIGITS_{level}_{kind}.png" for level in ("0.1", "iid") for kind in ("comparison", "train_val")]
    assert figures == [str(tmp_path / "out" / name) for name in names]
    for figure in figures:
        assert matplotlib.image.imread(figure).std() > 0.05
        assert (tmp_path / "out" / figure.replace(".png", ".pdf")).stat().st_size > 5000


def test_lines_carry_n_and_every_round(metrics):
    axes = curves.plt.subplots()[1]
    curves.draw_lines(axes, iid(metrics), "test_accs", "both", "MB", "accuracy")
    assert "FedAvg (n=2)" in [line.get_label() for line in axes.lines]
    assert axes.lines[0].get_xdata().tolist() == [16, 32]
    curves.plt.close("all")


def test_forty_series_look_different_and_ten_by_their_colour():
    looks = [curves.style(i) for i in range(40)]
    assert len({look["color"] for look in looks[:10]}) == len({look["marker"] for look in looks[:10]}) == 10
    assert {look["ls"] for look in looks[:10]} == {"-"}
    assert len({(look["color"], look["ls"]) for look in looks}) == 40
    assert all(matplotlib.colors.is_color_like(look["color"]) for look in looks)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.004, 300, ["0.01", "0.1", "1", "10", "100"]),
        (3.5, 80, ["5", "10", "20", "50"]),
        (1.9, 5.2, ["2", "3", "4", "5"]),
        (0.95, 2.1, None),
        (3.1, 3.9, None),
    ],
)
def test_a_logarithmic_axis_has_numbers(low, high, labels):
    figure, axes = curves.plt.subplots()
    axes.plot([low, high], [0, 1])
    axes.margins(x=0)
    curves.scale_by_logarithm(axes)
    figure.canvas.draw()
    at = [(x, label.get_text()) for x, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)]
    seen = [text for x, text in at if low <= x <= high]
    assert seen == labels if labels else len(seen) >= 3
    curves.plt.close("all")


def test_figures_are_in_per_cent_and_say_what_bands_and_bytes_are(metrics, tmp_path, finished):
    compared(metrics, tmp_path / "out")
    _, _, comparison, train_val = finished
    assert comparison[1] == "DIGITS, IID"
    assert max(comparison[0].axes[0].lines[0].get_ydata()) == pytest.approx(60)
    assert max(train_val[0].axes[0].lines[0].get_ydata()) == pytest.approx(60)
    for _, _, notes in (comparison, train_val):
        assert notes[0] == "Lines: means over n seeds; bands: the range of the two seeds."
        assert notes[1].startswith("Bytes: ")
    assert finished[0][2][0] == ""  # single seeds have no band


def test_panels_width_limits_and_letters_are_as_asked(metrics, tmp_path, finished):
    compared(metrics, tmp_path / "out", "--panels", "up", "both", "--width", 6, "--ylim", 20, 90)
    figure = finished[0][0]
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "megabytes sent up by all clients",
        "megabytes sent, up + down",
    ]
    assert figure.get_figwidth() == 6
    assert figure.axes[0].get_ylim() == (20, 90)


def test_where_nothing_was_sent_there_is_no_panel_of_megabytes(tmp_path, finished):
    write_run(tmp_path, [0.5, 0.9], algorithm="centralised")
    rows = compared(tmp_path, tmp_path / "out")[0]["summary"]
    assert [axes.get_xlabel() for axes in finished[0][0].axes] == ["round"]
    assert finished[0][2] == ["", ""]  # no convention of bytes either
    assert rows[0]["MB up/round"] == "0"


def test_runs_with_all_data_in_one_place_are_a_line_across_every_figure(metrics, tmp_path, finished):
    write_run(metrics, [0.5, 0.9], algorithm="centralised")
    rows = compared(metrics, tmp_path / "out")[0]["summary"]
    assert len(finished) == 4  # two figures of two levels
    for figure, _, _ in finished[::2]:
        for axes in figure.axes:
            assert axes.lines[-1].get_label() == "centralised (n=1)"
            assert list(axes.lines[-1].get_ydata()) == [90, 90]
    assert (rows[-1]["split"], rows[-1]["method"]) == ("", "centralised")


def test_a_series_of_which_no_run_finished_is_in_the_legend(metrics, tmp_path, finished):
    change(metrics, write_run(metrics, [0.1, 0.1], lr=9.0), finished=False, failed="the loss is not finite")
    compared(metrics, tmp_path / "out")
    labels = [line.get_label() for line in finished[-1][0].axes[0].lines]
    assert "FedAvg lr=9.0 (n=0 of 1, 1 diverged)" in labels


def test_a_legend_of_long_labels_and_notes_stays_in_the_figure(monkeypatch):
    monkeypatch.setattr(curves, "save", lambda *_: None)
    for width in (3.5, 9):
        figure, axes = curves.plt.subplots(figsize=(width, 4))
        for i in range(5):
            label = f"LSS {i} aff_coeff=0.1 average_received=False div_coeff=0.1 later_share=0.125 $\\frac$ " * 2
            axes.plot([0, 1], label=label)
        curves.finish(figure, axes, "x", "title " * 30, ["a note of some length " * 8, "another"])
        figure.canvas.draw()
        box, panel = figure.legends[0].get_window_extent(), axes.get_window_extent()
        curves.plt.close(figure)
        assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert 0 <= box.y0 < box.y1 < panel.y0
        assert panel.height > 2 * figure.dpi


@pytest.mark.figures
def test_a_runs_own_figures(metrics, tmp_path):
    name = write_run(metrics, [0.1, 0.5, 0.7])
    run_figures.plot_run(metrics, name, tmp_path / "plots")
    for kind in ("accuracy_curves", "loss_curves", "partition"):
        assert matplotlib.image.imread(tmp_path / "plots" / f"{name}_{kind}.png").std() > 0.05
    assert plotting.plot_run is run_figures.plot_run


def test_only_rounds_of_all_runs_are_drawn():
    def run(n):
        numbers = {"epoch": range(1, n + 1), "test_accs": 0.5, "bytes_up": 1e6, "bytes_down": 0.0, "train_seconds": 2.0}
        return type("Run", (), {"rounds": pd.DataFrame(numbers)})

    line = curves.over_seeds([run(2), run(5)], "test_accs")
    assert line.index.tolist() == [1, 2]
    assert line["seconds"].tolist() == [2, 4]
    assert np.isfinite(line.to_numpy()).all()


def test_rounds_that_a_panel_cannot_show_are_told(tmp_path):
    name = write_run(tmp_path, [0.2, 0.4, 0.5])
    assert curves._first_rounds(grouping.group_series(loaded(tmp_path)), ["round", "down"]) == []
    path = tmp_path / f"{name}_metrics.csv"
    path.write_text(path.read_text().replace("12000000.0", "0", 1))
    found = grouping.group_series(loaded(tmp_path))
    (said,) = curves._first_rounds(found, ["round", "down"])
    assert said == "Before round 2, nothing is sent down: the lines over megabytes down begin there."
    assert curves._first_rounds(found, ["round", "up"]) == []
