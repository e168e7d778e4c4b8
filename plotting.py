"""Figures and tables from the CSV and JSON files of finished runs.

    python plotting.py --csv_dir metrics --output_dir final_plots --dataset CIFAR10

draws, for every heterogeneity level, all algorithms over rounds and over megabytes (mean and deviation over the seeds;
runs of --algorithm centralised as lines across), and writes two tables as CSV, Markdown and LaTeX, all from the same
files: a summary, and what it took to reach 99 % of FedAvg's final accuracy.
"""

import argparse
import json
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import MaxNLocator, NullFormatter

import records
from options import algorithm_specs, all_options, local_options
from utils import DECIDING, InputError, acting, default_settings

# Okabe and Ito's colours, told apart by the colour-blind; line styles and markers tell the lines apart in grey.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255", "#999933", "#44AA99"]
LINES = ["-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1))]
MARKERS = "os^DvPX*"
FINAL = ["accuracy", "f1", "accuracy_last10", "accuracy_best_val", "bytes_up", "bytes_down"]
CURVES = [f"{part}_{what}" for what in ("accs", "losses") for part in ("train", "val", "test")]
ROUNDS = ["epoch", *CURVES, "bytes_up", "bytes_down", "train_seconds", "clients"]
NAMES = {
    **{"fedavg": "FedAvg", "fedprox": "FedProx", "fedacg": "FedACG", "las": "LaS-FL"},
    **{"topk": "top-k", "stc": "STC", "signsgd": "signSGD", "moon": "MOON", "fedbn": "FedBN"},
    **{"swa": "SWA", "swad": "SWAD", "soups": "Soups", "diwa": "DiWA", "lss": "LSS", "centralised": "centralised"},
}
MB = 1e6  # bytes
TARGET = 0.99  # of FedAvg's final accuracy

plt.rcParams.update(
    {"font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "savefig.dpi": 150, "figure.constrained_layout.use": True}
)


@dataclass
class Run:
    """One finished run: its settings, its final figures, and a row a round."""

    name: str
    settings: dict
    final: dict
    dense_bytes: int  # of one model, weights and buffers
    rounds: pd.DataFrame


def load_runs(csv_dir, dataset=None):
    """Return the finished Runs under `csv_dir`; files that are not ours are named on standard error and left out."""
    runs = []
    for path in sorted(Path(csv_dir).glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["finished"] and dataset in (None, content["settings"]["dataset"]):
                runs.append(_read_run(path, content))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            print(f"warning: {path}: left out ({type(error).__name__}: {error})", file=sys.stderr)
    return runs


def _read_run(path, content):
    """Return the Run of a record; raises one of load_runs' exceptions if something that the figures need is missing."""
    settings = content["settings"] | {"dirichlet": records.split_name(content)}
    if content["settings"]["dirichlet"] is not None:
        level_order(settings["dirichlet"])
    if {"algorithm", "dataset", "n_epochs"} - set(settings):
        raise ValueError("no algorithm, dataset or n_epochs among its settings")
    final = {name: float(content["final"][name]) for name in FINAL}
    rounds = pd.read_csv(path.with_name(f"{path.stem}_metrics.csv"))[ROUNDS].astype(float)
    if rounds["test_accs"].isna().all():
        raise ValueError("no round with a test accuracy")
    return Run(path.stem, settings, final, 4 * sum(content["model"].values()), rounds)


# --------------------------------------------------------------------------------------------------------------------
# One run


def plot_run(metrics_dir, name, plots_dir):
    """Draw <run>_accuracy_curves.png, _loss_curves.png and _partition.png into `plots_dir`; return their pattern."""
    plots_dir.mkdir(parents=True, exist_ok=True)
    rounds = pd.read_csv(metrics_dir / f"{name}_metrics.csv")
    for what, column, label in (("accuracy", "accs", "accuracy"), ("loss", "losses", "cross-entropy")):
        figure, axes = plt.subplots(figsize=(5, 3.5))
        for i, part in enumerate(("train", "val", "test")):
            line = rounds[["epoch", f"{part}_{column}"]].dropna()
            every = max(1, len(line) // 10)
            axes.plot(*line.to_numpy().T, color=COLOURS[i], ls=LINES[i], marker=MARKERS[i], markevery=every, label=part)
        axes.set(xlabel="round", ylabel=label)
        axes.set_title(name, fontsize=7, wrap=True)
        axes.legend()
        save(figure, plots_dir / f"{name}_{what}_curves", ["png"])
    partition = json.loads((metrics_dir / f"{name}.json").read_text(encoding="utf-8"))["partition"]
    plot_partition(partition["histograms"], plots_dir / f"{name}_partition", name)
    return f"{plots_dir / name}_*.png"


def plot_partition(histograms, path, title):
    """Draw how many samples of each class every client holds; `histograms` is [n_clients][n_classes] counts."""
    figure, axes = plt.subplots(figsize=(5, 4))
    image = axes.imshow(histograms, aspect="auto", cmap="cividis", interpolation="nearest", vmin=0)
    axes.grid(visible=False)
    axes.set(xlabel="class", ylabel="client")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(title, fontsize=7, wrap=True)
    figure.colorbar(image, label="training samples")
    save(figure, path, ["png"])


def plot_clients(rows, path):
    """Draw each client's accuracy with the shared model, its part and a full copy; rows are personal.evaluate's."""
    figure, axes = plt.subplots(figsize=(6, 3.5))
    rows = sorted(rows, key=lambda row: row["shared_accuracy"])
    kinds = {"shared_accuracy": "shared model", "full_accuracy": "full copy", "personal_accuracy": "shared + part"}
    for i, (column, label) in enumerate(kinds.items()):
        axes.plot([row[column] for row in rows], MARKERS[i], color=COLOURS[i], markersize=5 + 3 * (i == 1), label=label)
    axes.set_xticks(range(len(rows)), [row["client"] for row in rows], fontsize=7, rotation=90 if len(rows) > 30 else 0)
    axes.set(xlabel="client", ylabel="accuracy on its own mix of labels")
    axes.legend()
    save(figure, path, ["png"])


def save(figure, path, kinds):
    for kind in kinds:
        figure.savefig(f"{path}.{kind}")
    plt.close(figure)


# --------------------------------------------------------------------------------------------------------------------
# Many runs


def own_defaults(settings):
    """Return {name: value} of what a run of this algorithm, preset, model and dataset has unless told otherwise."""
    chosen = {name: settings.get(name, all_options()[name].default) for name in DECIDING}
    try:
        return default_settings(argparse.Namespace(**chosen))
    except (KeyError, InputError):  # an algorithm or a preset that this version does not have
        return {name: option.default for name, option in all_options().items()}


def group_series(runs):
    """Return {label: [Runs that differ only in their seed]} of the runs of one figure.

    The label is the algorithm's name, and what is not at its default: its preset, its own options, and the settings in
    which the series of the figure differ.
    """
    unnamed = {name for name, option in all_options().items() if not option.named}  # folders and the like
    ignored = {"seed", "dirichlet", "dataset", "algorithm", *unnamed}
    series, values = {}, {}
    for run in sorted(runs, key=lambda run: [*NAMES, run.settings["algorithm"]].index(run.settings["algorithm"])):
        settings = acting(own_defaults(run.settings) | run.settings)
        settings = {k: str(v) for k, v in settings.items() if k not in ignored}
        series.setdefault((run.settings["algorithm"], *sorted(settings.items())), []).append(run)
        for setting, value in settings.items():
            values.setdefault(setting, set()).add(value)
    for setting, seen in values.items():
        if any(setting not in dict(key[1:]) for key in series):
            seen.add("")  # it does not act there, or is of a version that has no such setting
    labelled = {}
    told = {name for spec in algorithm_specs().values() for name in spec.options} | {
        "preset",
        "local",
        *local_options(),
    }
    for (algorithm, *settings), members in series.items():
        usual = {k: str(v) for k, v in own_defaults(members[0].settings).items()}
        extra = [f"{k}={v}" for k, v in settings if (len(values[k]) > 1 or k in told) and v != usual.get(k)]
        labelled[" ".join([NAMES.get(algorithm, algorithm), *extra])] = members
    return labelled


def over_seeds(members, column):
    """Return a frame indexed by round: mean and deviation of `column` over the runs, and megabytes sent until then."""
    frames = []
    for run in members:
        rounds = run.rounds
        up, down = rounds["bytes_up"].cumsum() / MB, rounds["bytes_down"].cumsum() / MB
        sent = {"up": up, "down": down, "both": up + down}
        frames.append(pd.DataFrame({"epoch": rounds["epoch"], "value": rounds[column], **sent}))
    grouped = pd.concat(frames).dropna().groupby("epoch")
    means = grouped.mean()
    means["std"] = grouped["value"].std().fillna(0)  # one seed has no deviation
    return means


def draw_lines(axes, series, column, x, xlabel, ylabel):
    """Draw the mean of `column` over x ("epoch", "up", "down", "both") for all series, with a band of one deviation."""
    for i, (label, members) in enumerate(series.items()):
        line = over_seeds(members, column).reset_index()
        line = line[
            line[x] > 0
        ]  # what was sent free of charge, as to clients that make the first model, has no logarithm
        style = {"color": COLOURS[i % len(COLOURS)], "ls": LINES[i % len(LINES)], "marker": MARKERS[i % len(MARKERS)]}
        every = max(1, len(line) // 8)
        label = f"{label} (n={len(members)})"
        axes.plot(line[x], line["value"], markevery=(i % every, every), markersize=4, label=label, **style)
        low, high = line["value"] - line["std"], line["value"] + line["std"]
        axes.fill_between(line[x], low, high, color=style["color"], alpha=0.15, lw=0)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if x == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def finish(figure, axes, series, path, title):
    """Put a title over the figure and the legend of `axes` under it, and save it as PNG and PDF."""
    several = any(len(members) > 1 for members in series.values())
    figure.suptitle(title + (": mean and deviation over n seeds" if several else ""), fontsize=10)
    handles, labels = axes.get_legend_handles_labels()
    labels = [textwrap.fill(label, 72) for label in labels]
    longest = max(len(line) for label in labels for line in label.splitlines())
    columns = max(1, min(4, len(labels), round(16 * figure.get_figwidth()) // (longest + 6)))  # 16 characters an inch
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)
    save(figure, path, ["png", "pdf"])


def draw_comparison(series, path, title, bounds):
    """Draw test accuracy of all series over rounds, and over megabytes sent up, down and both, beside one another.

    bounds: series of which only the last accuracy counts, drawn as lines across.
    """
    figure, panels = plt.subplots(2, 2, figsize=(10, 8), sharey=True)
    axis_titles = {
        "epoch": "round",
        "up": "megabytes sent up by all clients",
        "down": "megabytes sent down to all clients",
        "both": "megabytes sent, up + down",
    }
    for i, (axes, (x, xlabel)) in enumerate(zip(panels.flat, axis_titles.items(), strict=True)):
        draw_lines(axes, series, "test_accs", x, xlabel, "" if i % 2 else "test accuracy")
        for j, (label, members) in enumerate(bounds.items()):
            level = sum(run.final["accuracy"] for run in members) / len(members)
            axes.axhline(level, color="0.4", ls=LINES[-1 - j % len(LINES)], lw=1, label=f"{label} (n={len(members)})")
        if x != "epoch":
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
    finish(figure, panels[0, 0], series, path, title)


def draw_train_val(series, path, title, _):
    """Draw training and validation accuracy and loss of all series over rounds."""
    figure, panels = plt.subplots(2, 2, figsize=(9, 6), sharex=True)
    for row, (column, ylabel) in zip(panels, (("accs", "accuracy"), ("losses", "loss")), strict=True):
        for axes, part in zip(row, ("train", "val"), strict=True):
            xlabel = "round" if column == "losses" else ""  # the lower row
            draw_lines(axes, series, f"{part}_{column}", "epoch", xlabel, f"{part} {ylabel}")
    finish(figure, panels[0, 0], series, path, title)


def level_order(dirichlet):
    return float("inf") if dirichlet == "iid" else float(dirichlet)


def order_of_split(name):
    """Return what sorts heterogeneity levels by their concentration, IID and then splits made by hand behind them."""
    try:
        return level_order(name), ""
    except ValueError:
        return float("inf"), name


def title_of_split(name):
    """Return a heterogeneity level in words."""
    if order_of_split(name)[1]:
        return f"split: {name}"
    return "IID" if name == "iid" else f"Dirichlet({name})"


def summarise(dataset, dirichlet, series, at=()):
    """Return the rows of the summary table, one {column: text} for each series of one heterogeneity level.

    at: rounds after which the accuracy gets a column of its own; empty where a series was not evaluated then.
    """
    rows = []
    for label, members in series.items():
        finals = pd.DataFrame([run.final for run in members])
        seconds = pd.Series([run.rounds["train_seconds"].mean() for run in members])
        n_rounds = members[0].settings["n_epochs"]
        dense = pd.Series([run.dense_bytes * run.rounds["clients"].sum() for run in members])
        rows.append(
            {
                "dataset": dataset,
                "Dirichlet": str(dirichlet),
                "method": label,
                "rounds": str(n_rounds),
                "seeds": str(len(members)),
                **{f"after round {n} %": spread(100 * _accuracies_after(n, members)) for n in at},
                "accuracy %": spread(100 * finals["accuracy"]),
                "last 10 %": spread(100 * finals["accuracy_last10"]),
                "at best val %": spread(100 * finals["accuracy_best_val"]),
                "F1 %": spread(100 * finals["f1"]),
                "MB up/round": f"{finals['bytes_up'].mean() / n_rounds / MB:.2f}",
                "MB down/round": f"{finals['bytes_down'].mean() / n_rounds / MB:.2f}",
                "less up": times(dense, finals["bytes_up"]),
                "less in all": times(2 * dense, finals["bytes_up"] + finals["bytes_down"]),
                "s/round": f"{seconds.mean():.2f}",
            }
        )
    return rows


def _accuracies_after(n, members):
    """Return the test accuracies after round n, a pandas Series, of the Runs that were evaluated then."""
    found = [run.rounds.loc[run.rounds["epoch"] == n, "test_accs"].dropna() for run in members]
    return pd.concat(found)


def times(dense, sent):
    """Return how many times less was sent than `dense`, the mean over the runs, as text; "" if nothing was sent."""
    return f"{(dense / sent).mean():.1f}x" if sent.all() else ""


def to_target(dataset, dirichlet, series):
    """Return the rows of the table of what each series sent until it had TARGET of FedAvg's final accuracy.

    That is the mean over FedAvg's seeds (of several series of plain FedAvg, the one with the shortest label); each run
    is taken at its first evaluation at which it has that accuracy. Of a series of which some runs never do, the means
    are over those that do. No row without plain FedAvg.
    """
    plain = [label for label, members in series.items() if _is_plain_fedavg(members[0].settings)]
    if not plain:
        return []
    reference = min(plain, key=len)
    target = TARGET * sum(run.final["accuracy"] for run in series[reference]) / len(series[reference])
    reached = {
        label: pd.DataFrame([_until(run.rounds, target) for run in members]) for label, members in series.items()
    }
    means, rows = {label: frame.mean() for label, frame in reached.items()}, []
    for label, frame in reached.items():
        there = len(frame.dropna())
        row = {"dataset": dataset, "Dirichlet": str(dirichlet), "method": label}
        row |= {"target %": f"{100 * target:.2f}", "of": reference, "seeds there": f"{there} of {len(frame)}"}
        row |= {column: spread(frame[column].dropna()) if there else "" for column in frame}
        for name, column in (("less up", "MB up"), ("less in all", "MB both")):
            row[name] = f"{means[reference][column] / means[label][column]:.1f}x" if there else ""
        rows.append(row)
    return rows


def _is_plain_fedavg(settings):
    """Tell whether it is FedAvg that sends whole models in float32."""
    wire = (str(settings.get("value_bits", 32)), settings.get("downlink", "delta"))
    if settings["algorithm"] != "fedavg" or settings.get("local", "sgd") != "sgd":
        return False
    return wire in (("32", "delta"), ("32", "dense"))


def _until(rounds, target):
    """Return {column: number} of a run's rounds and megabytes until its test accuracy is `target`, else NaN."""
    up, down = rounds["bytes_up"].cumsum() / MB, rounds["bytes_down"].cumsum() / MB
    frame = pd.DataFrame({"rounds": rounds["epoch"], "MB up": up, "MB down": down, "MB both": up + down})
    found = frame[rounds["test_accs"] >= target]
    return dict(found.iloc[0]) if len(found) else dict.fromkeys(frame, float("nan"))


def spread(values):
    """Return "mean ± deviation" of the values, or the value alone if there is one; "" if there is none."""
    if not len(values):
        return ""
    return f"{values.mean():.2f}" + (f" ± {values.std():.2f}" if len(values) > 1 else "")


def as_text(rows):
    """Return the table for a terminal: columns padded with spaces."""
    widths = {c: max(len(c), *(len(r[c]) for r in rows)) for c in rows[0]}
    lines = [dict(zip(widths, widths, strict=True)), *rows]
    return "\n".join("  ".join(line[c].ljust(w) for c, w in widths.items()).rstrip() for line in lines)


def as_markdown(rows):
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(r.values()) for r in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def as_latex(rows):
    def escaped(text):
        for plain, latex in (("%", r"\%"), ("_", r"\_"), ("&", r"\&"), ("±", r"$\pm$")):
            text = text.replace(plain, latex)
        return text

    lines = [" & ".join(map(escaped, cells)) + r" \\" for cells in [list(rows[0]), *(list(r.values()) for r in rows)]]
    begin, end = rf"\begin{{tabular}}{{{'l' * len(rows[0])}}}", r"\end{tabular}"
    return "\n".join([begin, r"\hline", lines[0], r"\hline", *lines[1:], r"\hline", end]) + "\n"


def compare(csv_dir, output_dir, dataset, at=()):
    """Draw all figures of `dataset` and write its tables; return {name: rows} of these, and the paths written.

    at: rounds of which the summary tells the accuracy too.

    Raises ValueError if there is no finished run of it.
    """
    runs = load_runs(csv_dir, dataset)
    if not runs:
        others = sorted({run.settings["dataset"] for run in load_runs(csv_dir)})
        raise ValueError(
            f"no finished run of {dataset} in {csv_dir}" + (f", only of {', '.join(others)}" if others else "")
        )
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    tables, paths = {"summary": [], "to_target": []}, []
    central = [run for run in runs if run.settings["algorithm"] == "centralised"]
    federated = [run for run in runs if run.settings["algorithm"] != "centralised"] or central
    bounds = group_series(central) if federated is not central else {}
    levels = {(run.settings.get("shift", "label"), run.settings["dirichlet"]) for run in federated}
    for shift, dirichlet in sorted(levels, key=lambda level: (level[0] != "label", order_of_split(level[1]))):
        members = [run for run in federated if run.settings["dirichlet"] == dirichlet]
        series = group_series([run for run in members if run.settings.get("shift", "label") == shift])
        title = f"{dataset}, {title_of_split(dirichlet)}"
        level = str(dirichlet)
        if shift == "feature":
            title, level = f"{title}, a domain a client", f"feature_{dirichlet}"
        for kind, draw in (("comparison", draw_comparison), ("train_val", draw_train_val)):
            paths.append(output_dir / f"{dataset}_{level}_{kind}.png")
            draw(series, paths[-1].with_suffix(""), title, bounds)
        tables["summary"] += summarise(dataset, level, series, at)
        tables["to_target"] += to_target(dataset, level, series)
    tables["summary"] += summarise(dataset, "", bounds, at)
    for name, rows in tables.items():
        if rows:
            paths.append(output_dir / f"{dataset}_{name}.md")
            paths[-1].write_text(as_markdown(rows), encoding="utf-8")
            paths[-1].with_suffix(".tex").write_text(as_latex(rows), encoding="utf-8")
            pd.DataFrame(rows).to_csv(paths[-1].with_suffix(".csv"), index=False)
    return tables, paths


def main():
    parser = argparse.ArgumentParser(description="Compare the finished runs of a dataset: figures and tables.")
    parser.add_argument("--csv_dir", default="metrics", help="folder of <run>_metrics.csv and <run>.json [metrics]")
    parser.add_argument("--output_dir", default="final_plots", help="folder for figures and tables [final_plots]")
    parser.add_argument("--dataset", help="default: every dataset that has a finished run")
    parser.add_argument(
        "--at",
        type=int,
        nargs="+",
        default=[],
        metavar="R",
        help="rounds after which the summary tells the accuracy, too",
    )
    parser.add_argument(
        "--rebuild_results",
        nargs="?",
        const="results.csv",
        metavar="FILE",
        help="draw nothing; put the rows of all finished runs into this CSV [results.csv] again",
    )
    args = parser.parse_args()
    if args.rebuild_results:
        try:
            n = records.rebuild_results(args.csv_dir, args.rebuild_results)
        except (InputError, OSError) as error:
            parser.error(str(error))
        print(f"{args.rebuild_results}: {n} finished runs of {args.csv_dir}")
        return
    datasets = [args.dataset] if args.dataset else sorted({run.settings["dataset"] for run in load_runs(args.csv_dir)})
    if not datasets:
        parser.error(f"no finished run in {args.csv_dir}: run fedalg.py first")
    for dataset in datasets:
        try:
            tables, paths = compare(args.csv_dir, args.output_dir, dataset, args.at)
        except (ValueError, OSError) as error:
            parser.error(str(error))
        print(as_text(tables["summary"]), end="\n\n")
        if tables["to_target"]:
            print(f"until {TARGET:.0%} of FedAvg's final accuracy:\n{as_text(tables['to_target'])}", end="\n\n")
        print("figures and tables: " + ", ".join(map(str, paths)), end="\n\n")


if __name__ == "__main__":
    main()
