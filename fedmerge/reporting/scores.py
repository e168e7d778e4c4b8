"""The accuracies of a run in single figures, taken from its rounds: what its record, results.csv and tables tell."""

import math

LAST = 10  # rounds
NAMES = "accuracy accuracy_last10 accuracy_best_val best_val_round val_accuracy val_accuracy_last10 val_accuracy_best"


def accuracies(rows):
    """Return {name: accuracy}, test and validation: of the last evaluation, the mean over the evaluations in the last
    LAST rounds, and that of the round (`best_val_round`, the first of several) with the best validation accuracy.

    rows: of the evaluated rounds, at least one, in order: {"epoch", "val_accs", "test_accs", ...}. Without validation
    data, as --no-validation has none, all but `accuracy` and `accuracy_last10` are None.
    """
    end = rows[-1]
    last = [row for row in rows if row["epoch"] > end["epoch"] - LAST]
    if any(missing(row.get("val_accs")) for row in rows):
        return dict.fromkeys(NAMES.split()) | {
            "accuracy": end["test_accs"],
            "accuracy_last10": _mean(last, "test_accs"),
        }
    best = max(rows, key=lambda row: row["val_accs"])
    return {
        "accuracy": end["test_accs"],
        "accuracy_last10": _mean(last, "test_accs"),
        "accuracy_best_val": best["test_accs"],
        "best_val_round": int(best["epoch"]),
        "val_accuracy": end["val_accs"],
        "val_accuracy_last10": _mean(last, "val_accs"),
        "val_accuracy_best": best["val_accs"],
    }


def missing(value):
    """Tell whether a figure is not there: None, or NaN as pandas has it."""
    return value is None or math.isnan(value)


def _mean(rows, column):
    return sum(row[column] for row in rows) / len(rows)
