"""The accuracies of a run in single figures, taken from its rounds: what its record, results.csv and tables tell."""

LAST = 10  # rounds


def accuracies(rows):
    """Return {name: accuracy}, test and validation: of the last evaluation, the mean over the evaluations in the last
    LAST rounds, and that of the round (`best_val_round`, the first of several) with the best validation accuracy.

    rows: of the evaluated rounds, at least one, in order: {"epoch", "val_accs", "test_accs", ...}.
    """
    best, end = max(rows, key=lambda row: row["val_accs"]), rows[-1]
    last = [row for row in rows if row["epoch"] > end["epoch"] - LAST]
    mean = {part: sum(row[f"{part}_accs"] for row in last) / len(last) for part in ("test", "val")}
    return {
        "accuracy": end["test_accs"],
        "accuracy_last10": mean["test"],
        "accuracy_best_val": best["test_accs"],
        "best_val_round": int(best["epoch"]),
        "val_accuracy": end["val_accs"],
        "val_accuracy_last10": mean["val"],
        "val_accuracy_best": best["val_accs"],
    }
