"""Figures of a dataset's Series: accuracy over rounds and over megabytes, training and validation over rounds."""

import io
import sys
import textwrap

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import AutoLocator, FixedLocator, LogLocator, MaxNLocator, NullFormatter

from fedmerge import saving

if "ipykernel" not in sys.modules:  # a notebook has its own way to show what is drawn in it
    matplotlib.use("Agg")

# Okabe and Ito's colours first, told apart by the colour-blind; markers tell the lines apart in grey.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255", "#999933", "#44AA99"]
MARKERS = "os^DvPX*<>"
LINES = ["-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1))]  # one after ten colours each
PANELS = {
    "round": ("epoch", "round"),
    "up": ("up", "megabytes sent up by all clients"),
    "down": ("down", "megabytes sent down to all clients"),
    "both": ("both", "megabytes sent, up + down"),
}
MB = 1e6  # bytes
FEW = 3  # seeds, of which a deviation means something

plt.rcParams.update(
    {"axes.grid": True, "grid.alpha": 0.3, "savefig.dpi": 150, "figure.constrained_layout.use": True}
    | {"font.size": 9, "text.parse_math": False}  # names of methods and files are no formulas
)


def save(figure, path, kinds):
    """Write the figure as `path`.<kind> for each kind, and close it."""
    for kind in kinds:
        content = io.BytesIO()
        figure.savefig(content, format=kind)
        saving.write_atomic(f"{path}.{kind}", content.getvalue())
    plt.close(figure)


def style(place):
    """Return how the line number `place` looks: sixty differ in colour or line."""
    line = LINES[place // len(COLOURS) % len(LINES)]
    marker = MARKERS[(place + place // 60) % len(MARKERS)]
    hollow = {"markerfacecolor": "white"} if place // len(COLOURS) % 2 else {}
    return {"color": COLOURS[place % len(COLOURS)], "ls": line, "marker": marker, **hollow}


def over_seeds(runs, column):
    """Return a frame indexed by round: mean of `column` over the Runs, the band around it, megabytes sent and seconds
    of training until then.

    The band, `low` to `high`, is a deviation each way, within what is possible, or the range of fewer than FEW runs.
    Accuracies are in per cent. Rounds that not all of the runs were evaluated in are left out.
    """
    frames = []
    for run in runs:
        rounds = run.rounds
        up, down = rounds["bytes_up"].cumsum() / MB, rounds["bytes_down"].cumsum() / MB
        value = rounds[column] * (100 if column.endswith("accs") else 1)
        x = {"epoch": rounds["epoch"], "up": up, "down": down, "both": up + down}
        x["seconds"] = rounds["train_seconds"].cumsum()
        frames.append(pd.DataFrame({"value": value, **x}).dropna())
    grouped = pd.concat(frames).groupby("epoch")
    means, value = grouped.mean(), grouped["value"]
    means["low"], means["high"] = value.min(), value.max()
    if len(runs) >= FEW:
        highest = 100 if column.endswith("accs") else None
        means["low"] = (means["value"] - value.std()).clip(0, highest)
        means["high"] = (means["value"] + value.std()).clip(0, highest)
    return means[value.count() == len(runs)]


def draw_lines(axes, found, column, x, xlabel, ylabel):
    """Draw the mean of `column` over x ("epoch", "up", "down", "both") for all Series, with its band."""
    for series in found:
        look = style(series.style)
        if not series.runs:  # nothing to draw, but it is in the legend
            axes.plot([], [], markersize=4, label=series.legend, **look)
            continue
        line = over_seeds(series.runs, column).reset_index()
        line = line[line[x] > 0]  # free of charge, as to clients that make the first model: it has no logarithm
        every = max(1, len(line) // 8)
        place = series.style % every, every
        axes.plot(line[x], line["value"], markevery=place, markersize=4, label=series.legend, **look)
        axes.fill_between(line[x], line["low"], line["high"], color=look["color"], alpha=0.15, lw=0)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if x == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def scale_by_logarithm(axes):
    """Make the x-axis logarithmic, with at least three numbers on it; one without a line stays as it is."""
    if not any(len(line.get_xdata()) for line in axes.lines if line.get_transform().contains_branch(axes.transData)):
        return
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    for steps in ((1,), (1, 2, 5), range(1, 10)):
        ticks = np.asarray(LogLocator(subs=steps, numticks=99).tick_values(low, high))
        ticks = ticks[(ticks >= low) & (ticks <= high)]
        if len(ticks) >= 3:
            break
    else:
        ticks = AutoLocator().tick_values(low, high)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(low, high)


def about_bands(found):
    """Return in words what lines and bands are."""
    n = {len(series.runs) for series in found} - {0}
    if n <= {1}:
        return ""
    several = {number for number in n if number > 1}
    few, many = any(number < FEW for number in several), any(number >= FEW for number in several)
    band = " or ".join(["the standard deviation each way"] * many + ["the range of the two seeds"] * few)
    if few and many:
        band = "the standard deviation each way, or with two seeds their range"
    return f"Lines: means over n seeds; bands: {band}."


def finish(figure, axes, path, title, notes):
    """Lay the figure out, and save it as PNG and PDF."""
    lay_out(figure, axes, title, notes)
    save(figure, path, ["png", "pdf"])


def lay_out(figure, axes, title, notes):
    """Put a title over the figure, and the legend of `axes` and the notes under it."""
    size, width = plt.rcParams["font.size"], figure.get_figwidth()
    figure.suptitle("\n".join(textwrap.wrap(title, int(130 * width / size))), fontsize=size + 1)
    inch = 144 / size  # characters of the legend's font in it, about
    handles, labels = axes.get_legend_handles_labels()
    labels = ["\n".join(textwrap.wrap(label, min(72, int(inch * width) - 8))) for label in labels]
    longest = max(len(line) for label in labels for line in label.splitlines())
    columns = max(1, min(4, len(labels), int(inch * width) // (longest + 6)))
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=size - 1)
    legend.set_title("\n".join(textwrap.fill(note, int(inch * width) - 4) for note in notes if note))
    legend.get_title().set(fontsize=size - 2, multialignment="left")
    figure.set_figheight(figure.get_figheight() + legend.get_window_extent().height / figure.dpi)


def draw_comparison(found, path, title, notes, bounds=(), **look):
    """Draw what `comparison` does, and save it as PNG and PDF."""
    figure, axes, more = comparison(found, bounds, **look)
    finish(figure, axes, path, title, [more[0], *notes, *more[1:]])


def comparison(found, bounds=(), panels=tuple(PANELS), width=None, ylim=None):
    """Draw test accuracy of all Series over rounds, and over megabytes sent up, down and both, beside one another;
    return the figure, the axes whose legend it has, and sentences for under it.

    bounds: Series of which only the last accuracy counts, drawn as lines across; panels: which of PANELS, without
    those in which nothing was sent; width in inches; ylim: (low, high) in per cent.
    """
    panels = [panel for panel in panels if panel == "round" or _sent(found, PANELS[panel][0])]
    panels = panels or ["round"]
    across = min(len(panels), 3 if len(panels) == 3 else 2)
    down = -(-len(panels) // across)
    width = width or (5, 10, 12)[across - 1]
    size = (width, 0.3 + 0.33 * width * down * (2 / across))
    figure, grid = plt.subplots(down, across, figsize=size, sharey=True, squeeze=False)
    for i, (axes, panel) in enumerate(zip(grid.flat, panels, strict=True)):
        x, xlabel = PANELS[panel]
        draw_lines(axes, found, "test_accs", x, xlabel, "" if i % across else "test accuracy, %")
        for j, series in enumerate(series for series in bounds if series.runs):
            level = 100 * series.scores("accuracy").mean()
            axes.axhline(level, color="0.4", ls=LINES[-1 - j % len(LINES)], lw=1, label=series.legend)
        if x != "epoch":
            scale_by_logarithm(axes)
    if ylim:
        grid[0, 0].set_ylim(*ylim)
    return figure, grid[0, 0], [about_bands(found), *_first_rounds(found, panels)]


def _first_rounds(found, panels):
    """Return a sentence, in a list, if there are rounds before anything is counted, which the panels cannot show."""
    runs = [run for series in found for run in series.runs]
    for panel, column in (("up", "bytes_up"), ("down", "bytes_down")):
        first = {int(run.rounds["epoch"][run.rounds[column] > 0].min()) for run in runs if run.rounds[column].any()}
        if panel in panels and max(first, default=1) > 1:
            some = " in some runs" if len(first) > 1 else ""
            before = f"Before round {max(first)}, nothing is sent {panel}{some}"
            return [f"{before}: the lines over megabytes {panel} begin there."]
    return []


def _sent(found, direction):
    columns = {"up": ["bytes_up"], "down": ["bytes_down"], "both": ["bytes_up", "bytes_down"]}[direction]
    return any(run.rounds[columns].to_numpy().any() for series in found for run in series.runs)


def draw_train_val(found, path, title, notes, width=None):
    """Draw training and validation accuracy and loss of all Series over rounds; test, where nothing was validated."""
    width = width or 9
    validated = any(run.rounds["val_accs"].notna().any() for series in found for run in series.runs)
    figure, panels = plt.subplots(2, 2, figsize=(width, 0.3 + 0.6 * width), sharex=True)
    for row, (column, ylabel) in zip(panels, (("accs", "accuracy, %"), ("losses", "loss")), strict=True):
        for axes, part in zip(row, ("train", "val" if validated else "test"), strict=True):
            xlabel = "round" if column == "losses" else ""  # the lower row
            draw_lines(axes, found, f"{part}_{column}", "epoch", xlabel, f"{part} {ylabel}")
    finish(figure, panels[0, 0], path, title, [about_bands(found), *notes])
