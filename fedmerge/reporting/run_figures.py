"""Figures of one run: its curves, who holds which classes, and how personal models do."""

import json
import textwrap

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import MaxNLocator

from fedmerge.reporting.curves import COLOURS, LINES, MARKERS, save


def plot_run(metrics_dir, name, plots_dir):
    """Draw <run>_accuracy_curves.png, _loss_curves.png and _partition.png into `plots_dir`; return their pattern."""
    plots_dir.mkdir(parents=True, exist_ok=True)
    rounds = pd.read_csv(metrics_dir / f"{name}_metrics.csv")
    for what, column, label, scale in (
        ("accuracy", "accs", "accuracy, %", 100),
        ("loss", "losses", "cross-entropy", 1),
    ):
        figure, axes = plt.subplots(figsize=(5, 3.5))
        for i, part in enumerate(("train", "val", "test")):
            line = rounds[["epoch", f"{part}_{column}"]].dropna()
            every = max(1, len(line) // 10)
            look = {"color": COLOURS[i], "ls": LINES[i], "marker": MARKERS[i], "markevery": every}
            axes.plot(line["epoch"], scale * line[f"{part}_{column}"], label=part, **look)
        axes.set(xlabel="round", ylabel=label)
        axes.set_title(textwrap.fill(name, 70), fontsize=7)
        axes.legend()
        save(figure, plots_dir / f"{name}_{what}_curves", ["png"])
    partition = json.loads((metrics_dir / f"{name}.json").read_text(encoding="utf-8"))["partition"]
    words = _in_words(partition["skew"]) if "skew" in partition else ""
    plot_partition(partition["histograms"], plots_dir / f"{name}_partition", name, words)
    return f"{plots_dir / name}_*.png"


def _in_words(skew):
    """Return a line of partitions.skew's figures."""
    return (
        f"Hellinger {skew['hellinger']:.2f}, Jensen-Shannon {skew['jensen_shannon']:.2f}, effective classes "
        f"{skew['effective_classes']:.1f}, Gini of sizes {skew['size_gini']:.2f}"
    )


def plot_partition(histograms, path, title, words=""):
    """Draw how many samples of each class every client holds; `histograms` is [n_clients][n_classes] counts.

    words: a line below the title.
    """
    figure, axes = plt.subplots(figsize=(5, 4))
    image = axes.imshow(histograms, aspect="auto", cmap="cividis", interpolation="nearest", vmin=0)
    axes.grid(visible=False)
    axes.set(xlabel="class", ylabel="client")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("\n".join([textwrap.fill(title, 70), *textwrap.wrap(words, 80)]), fontsize=7)
    figure.colorbar(image, label="training samples")
    save(figure, path, ["png"])


def plot_clients(rows, path):
    """Draw each client's accuracy with the shared model, its part and a full copy; rows are personal.rows_of's."""
    figure, axes = plt.subplots(figsize=(6, 3.5))
    rows = sorted(rows, key=lambda row: row["shared_accuracy"])
    kinds = {"shared_accuracy": "shared model", "full_accuracy": "full copy", "personal_accuracy": "shared + part"}
    for i, (column, label) in enumerate(kinds.items()):
        values = [100 * row[column] for row in rows]
        axes.plot(values, MARKERS[i], color=COLOURS[i], markersize=5 + 3 * (i == 1), label=label)
    axes.set_xticks(range(len(rows)), [row["client"] for row in rows], fontsize=7, rotation=90 if len(rows) > 30 else 0)
    axes.set(xlabel="client", ylabel="accuracy on its own mix of labels, %")
    axes.legend()
    save(figure, path, ["png"])
