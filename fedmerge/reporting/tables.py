"""Tables of a dataset's Series: the summary, and what it took to reach the reference's accuracy; as text, Markdown,
LaTeX and CSV.
"""

import math
import re
import shutil
from dataclasses import dataclass

import pandas as pd
from scipy.special import stdtrit

from fedmerge import saving
from fedmerge.reporting.runs import printable
from fedmerge.reporting.scores import LAST

MB = 1e6  # bytes
TARGET = 0.99  # of the reference's accuracy
ASIDE = ("val. acc.", "test F1", "s/round")  # columns of the summary that a paper has no room for
UNTIL = ["rounds", "MB up", "MB down", "MB both"]
DEVIATION = "± is the standard deviation over the seeds."
LESS = "Less up, less in all: than if all clients sent, and got, whole models in float32; the mean over the seeds."
BEGUN = "Unfinished: the last round of each run is the last in which it was evaluated, and they differ."
UNTIL_LESS = (
    "A run counts from its first evaluation at the target on, whatever comes later; means are over the seeds that got "
    "there. Less up, less in all: than the reference sent until it was there, over the seeds of which both got there."
)


@dataclass
class Table:
    """A title, rows {column: text}, and sentences that stand under them."""

    title: str
    rows: list
    notes: list
    aside: tuple = ()  # columns that are in the CSV and in Markdown only

    def text(self):
        """Return it for a terminal, in blocks of columns that fit into its width; empty columns are left out."""
        width = shutil.get_terminal_size((120, 24)).columns
        body = [block for columns in _blocks(self.rows, width) for block in (*_aligned(self.rows, columns), "")]
        return "\n".join([f"{printable(self.title)}:", *body[:-1], *map(printable, self.notes)]) + "\n"

    def markdown(self):
        cells = [list(self.rows[0]), *(row.values() for row in self.rows)]
        lines = ["| " + " | ".join(map(_markdown, line)) + " |" for line in cells]
        lines.insert(1, "| " + " | ".join(["---"] * len(self.rows[0])) + " |")
        notes = "\n".join(f"- {_markdown(note)}" for note in self.notes)
        return f"{_markdown(self.title)}:\n\n" + "\n".join(lines) + f"\n\n{notes}\n"

    def latex(self):
        """Return a tabular, title and notes as comments; the best mean test accuracy at each level is bold.

        What is the same in all rows stands in the comments, and so do the names of the columns that are `aside`.
        """
        best, (columns, left) = _best_cells(self.rows), _for_print(self.rows, self.aside)
        comments = [f"% {_latex(line)}" for line in (f"{self.title}:", *left, *self.notes)]
        lines = [[_latex(name) for name in columns]]
        for i, row in enumerate(self.rows):
            cells = {name: _latex(row[name]) for name in columns}
            lines.append([rf"\textbf{{{cell}}}" if (i, name) in best else cell for name, cell in cells.items()])
        lines = [" & ".join(line) + r" \\" for line in lines]
        begin, end = rf"\begin{{tabular}}{{{'l' * len(columns)}}}", r"\end{tabular}"
        return "\n".join([*comments, begin, r"\hline", lines[0], r"\hline", *lines[1:], r"\hline", end]) + "\n"

    def write(self, path):
        """Write `path`.md, .tex and .csv; return the first."""
        saving.write_atomic(f"{path}.md", self.markdown())
        saving.write_atomic(f"{path}.tex", self.latex())
        saving.write_atomic(f"{path}.csv", pd.DataFrame(self.rows).to_csv(index=False))
        return f"{path}.md"


FIRST = ("split", "method")  # columns that every block begins with


def _width(rows, column):
    return max(len(printable(text)) for text in (column, *(row[column] for row in rows)))


def _blocks(rows, width):
    """Return lists of the columns that have something to tell, each as many as fit into `width` characters."""
    first = [column for column in FIRST if column in rows[0]]
    begin = sum(_width(rows, column) + 2 for column in first)
    blocks, taken = [], width
    for column in rows[0]:
        if column in (*first, "dataset") or not any(row[column] for row in rows):
            continue
        if taken + _width(rows, column) > width:
            blocks.append(list(first))
            taken = begin
        blocks[-1].append(column)
        taken += _width(rows, column) + 2
    return blocks or [list(first)]


def _aligned(rows, columns):
    """Return the lines of these columns, padded with spaces."""
    widths = {column: _width(rows, column) for column in columns}
    lines = [dict(zip(columns, columns, strict=True)), *rows]
    return ["  ".join(printable(line[c]).ljust(w) for c, w in widths.items()).rstrip() for line in lines]


LATEX = {
    **{c: f"\\{c}" for c in "{}$&%_#"},
    **{"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "±": r"$\pm$"},
}


def _latex(text):
    escaped = printable(text).translate(str.maketrans(LATEX))
    return re.sub(r"^([\d.]+)x$", r"$\1\\times$", escaped)


def _markdown(text):
    return printable(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _for_print(rows, aside):
    """Return the columns of rows {column: text} that differ and are not `aside`, and sentences on the others."""
    several = len(rows) > 1
    same = {name: cell for name, cell in rows[0].items() if several and all(row[name] == cell for row in rows)}
    said = [f"{name}: {cell}" for name, cell in same.items() if cell and name not in ("method", *aside)]
    gone = [name for name in aside if name in rows[0]]
    columns = [name for name in rows[0] if name == "method" or (name not in same and name not in gone)]
    left = [f"In all rows: {'; '.join(said)}."] if said else []
    return columns, [*left, *([f"Not here, but in the CSV: {'; '.join(gone)}."] if gone else [])]


def _best_cells(rows):
    """Return {(row, column)} of the best mean test accuracies among the rows of one level."""
    best = set()
    for name in rows[0]:
        levels = {}
        for i, row in enumerate(rows):
            if name.startswith("test acc. %") and row[name]:
                levels.setdefault((row["dataset"], row["split"]), []).append((float(row[name].split()[0]), i))
        for cells in levels.values():
            if len(cells) > 1:
                best |= {(i, name) for value, i in cells if value == max(cells)[0]}
    return best


def three_digits(x):
    """Return a number with three significant digits, not as a power of ten: "0.0262", "34.5", "1230"."""
    x = float(f"{x:.2e}")
    return f"{x:.{_decimals(x)}f}"


def _decimals(x):
    return max(0, 2 - math.floor(math.log10(abs(x)))) if x else 0


def spread(values, decimals=2):
    """Return "mean ± deviation" of the values, or the value alone if there is one; "" if there is none."""
    if not len(values):
        return ""
    return f"{values.mean():.{decimals}f}" + (f" ± {values.std():.{decimals}f}" if len(values) > 1 else "")


def times(dense, sent):
    """Return how many times less was sent than `dense`, the mean over the runs, as text; "" if nothing was sent."""
    return f"{(dense / sent).mean():.1f}x" if len(sent) and sent.all() else ""


def paired(series, reference):
    """Return the mean difference of the last test accuracies of two Series over the seeds that both have, in points,
    and its 95 % interval by Student's t, as text; "" with fewer than two such seeds.
    """
    mine, other = _by_seed(series), _by_seed(reference)
    differences = 100 * (mine - other).dropna()
    n = len(differences)
    if series is reference or n < 2:
        return ""
    mean = differences.mean()
    half = stdtrit(n - 1, 0.975) * differences.std() / math.sqrt(n)
    mean, low, high = (round(x, 2) + 0.0 for x in (mean, mean - half, mean + half))  # no -0.00
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}], {n} seeds"


def _by_seed(series):
    accuracies = series.scores("accuracy")
    return accuracies.groupby([run.settings["seed"] for run in series.runs]).mean()


def _first_columns(dataset, series):
    cell = "" if series.algorithm == "centralised" else series.level.cell
    return {"dataset": dataset, "split": cell, "method": series.label}


def averaged(found):
    """Return over which rounds the summary of the Series has means, in words, and a sentence that says so.

    Of runs that all have fewer rounds than LAST, these are all.
    """
    lengths = [len(run.rounds) for series in found for run in series.runs]
    over, those = f"last {LAST} rounds", f"The last {LAST} rounds"
    if max(lengths, default=LAST) < LAST:
        over, those = "all rounds", "All rounds"
    fewer = ", or of a run with fewer, in all of them" if min(lengths, default=LAST) < LAST <= max(lengths) else ""
    best = "Round of best val.: where a run's validation accuracy is best."
    return over, f"{those}: the mean of the evaluations in them{fewer}. {best}"


def summary_row(dataset, series, settings=(), at=(), reference=None, over=f"last {LAST} rounds"):
    """Return the row {column: text} of the summary for a Series; empty where there is nothing to tell.

    settings: names of those that get a column; at: rounds after which the accuracy gets a column of its own; reference:
    the Series to compare it with; over: see `averaged`.
    """

    def accuracy(name):
        return spread(100 * series.scores(name).dropna())

    return {
        **_first_columns(dataset, series),
        **{name: series.settings.get(name, "").replace("None", "") for name in settings},
        "rounds": _rounds(series),
        "seeds": series.count,
        **{f"test acc. %, round {n}": spread(100 * accuracies_after(n, series.runs)) for n in at},
        "test acc. %, last round": accuracy("accuracy"),
        f"test acc. %, {over}": accuracy("accuracy_last10"),
        "test acc. %, round of best val.": accuracy("accuracy_best_val"),
        "val. acc. %, last round": accuracy("val_accuracy"),
        f"val. acc. %, {over}": accuracy("val_accuracy_last10"),
        "val. acc. %, best round": accuracy("val_accuracy_best"),
        "test F1 %, last round": spread(pd.Series([100 * run.f1 for run in series.runs], dtype=float).dropna()),
        "difference to reference, points": paired(series, reference) if reference else "",
        **_costs(series),
    }


def _rounds(series):
    """Return how many rounds the runs have, in words: "100", or of runs that did not end "49 to 67 of 100"."""
    begun, scheduled = [len(run.rounds) for run in series.runs], series.members[0].settings["n_epochs"]
    if not begun or min(begun) == scheduled:
        return str(scheduled)
    return f"{' to '.join(str(n) for n in sorted({min(begun), max(begun)}))} of {scheduled}"


def _costs(series):
    """Return the columns of bytes and seconds."""
    columns = ["bytes_up", "bytes_down", "train_seconds", "clients"]
    sums = pd.DataFrame([run.rounds[columns].sum() for run in series.runs], columns=columns)
    rounds = pd.Series([len(run.rounds) for run in series.runs], dtype=float)
    dense = pd.Series([run.dense_bytes for run in series.runs], dtype=float) * sums["clients"]
    drawn = bool(series.runs)
    return {
        "MB up/round": three_digits((sums["bytes_up"] / rounds).mean() / MB) if drawn else "",
        "MB down/round": three_digits((sums["bytes_down"] / rounds).mean() / MB) if drawn else "",
        "less up": times(dense, sums["bytes_up"]),
        "less in all": times(2 * dense, sums["bytes_up"] + sums["bytes_down"]),
        "s/round": f"{(sums['train_seconds'] / rounds).mean():.2f}" if drawn else "",
    }


def accuracies_after(n, runs):
    """Return the test accuracies after round n, a pandas Series, of the Runs that were evaluated then."""
    found = [run.rounds.loc[run.rounds["epoch"] == n, "test_accs"].dropna() for run in runs]
    return pd.concat(found) if found else pd.Series(dtype=float)


def target_rows(dataset, found, reference):
    """Return the rows of the table of what each Series of a level sent until it had TARGET of the reference's accuracy.

    That is the mean test accuracy of its seeds in the last round; each run is taken at its first evaluation at which it
    has as much. Of a series of which some runs never do, the means are over those that do, and it is compared with the
    reference over the seeds of which both do.
    """
    target = TARGET * reference.scores("accuracy").mean()
    usual, rows = _reached(reference, target), []
    for series in found:
        frame = _reached(series, target)
        there = len(frame)
        row = {
            **_first_columns(dataset, series),
            "target test acc. %": f"{100 * target:.2f}",
            "reference": reference.label,
            "seeds there": f"{there} of {len(series.members)}",
            "rounds": spread(frame["rounds"]) if there else "",
        }
        for column in UNTIL[1:]:
            row[column] = _three_digits_spread(frame[column]) if there else ""
        common = frame.index.intersection(usual.index)
        for name, column in (("less up", "MB up"), ("less in all", "MB both")):
            sent = frame.loc[common, column].mean() if len(common) else 0
            row[name] = f"{usual.loc[common, column].mean() / sent:.1f}x" if sent else ""
        rows.append(row)
    return rows


def _reached(series, target):
    """Return a frame of UNTIL, a row for each seed of the runs that have the target accuracy once."""
    frame = pd.DataFrame([_until(run.rounds, target) for run in series.runs], columns=UNTIL)
    frame.index = [run.settings["seed"] for run in series.runs]
    return frame.dropna().groupby(level=0).mean()


def _three_digits_spread(values):
    return spread(values, _decimals(float(f"{values.mean():.2e}")))


def _until(rounds, target):
    """Return {column: number} of a run's rounds and megabytes until its test accuracy is `target`, else NaN."""
    up, down = rounds["bytes_up"].cumsum() / MB, rounds["bytes_down"].cumsum() / MB
    frame = pd.DataFrame(dict(zip(UNTIL, (rounds["epoch"], up, down, up + down), strict=True)))
    reached = frame[rounds["test_accs"] >= target]
    return dict(reached.iloc[0]) if len(reached) else dict.fromkeys(UNTIL, float("nan"))


def tables_of(dataset, found, bounds, reference, at, notes):
    """Return {name: Table} of all levels; bounds: Series of runs with all data in one place."""
    elsewhere = {"n_epochs", "dataset", "split", "method"}
    told = dict.fromkeys(name for series in found + bounds for name in series.told if name not in elsewhere)
    over, about = averaged(found + bounds)
    rows = [summary_row(dataset, series, told, at, reference.of.get(series.level), over) for series in found]
    rows += [summary_row(dataset, series, told, at, None, over) for series in bounds]
    words = reference.words()
    compared = (
        f"Reference: {words}. Difference to it: of the test accuracies of the last round, in points, the mean over "
        "common seeds and its 95 % interval (Student's t)."
    )
    if not words:
        compared = "No plain FedAvg among them, and no --reference: nothing is compared."
    begun = [BEGUN] if any(series.unfinished for series in found + bounds) else []
    aside = (*told, *(name for name in rows[0] if name.startswith(ASIDE) or name.endswith(over)))
    tables = {"summary": Table(f"{dataset}, summary", rows, [DEVIATION, about, *begun, LESS, compared, *notes], aside)}
    rows = []
    for level, of in reference.of.items():
        rows += target_rows(dataset, [series for series in found if series.level == level], of)
    if rows:
        title = f"{dataset}, until {100 * TARGET:.0f} % of the test accuracy of the reference in its last round"
        tables["to_target"] = Table(f"{title}; reference: {words}", rows, [DEVIATION, UNTIL_LESS, *notes])
    return tables
