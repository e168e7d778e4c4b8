"""Whether Series can be compared with one another: what they count, and of which programs and data their runs are."""

from collections import Counter

from fedmerge.errors import InputError
from fedmerge.reporting.runs import printable


def convention(found, mix=False):
    """Return in words whether the first contact of a client counts, "" if nothing is sent.

    Raises InputError if the Series differ in that, unless `mix`.
    """
    sending = [series for series in found if series.algorithm != "centralised"]
    of = {series.label: series.members[0].settings["shared_init"] for series in sending}
    free, counted = ([label for label, shared in of.items() if shared == kind] for kind in (True, False))
    if free and counted and not mix:
        raise InputError(
            f"the first download of the model counts in {_few(counted)}, but not in {_few(free)}, so that their bytes "
            "cannot be compared: run one of them again with --shared_init or --no-shared_init as the others, "
            "leave it out by --methods, or draw both by --mix"
        )
    if free and counted:
        return (
            "MIXED: a client's first download, the whole initial model, counts in "
            f"{_few(counted)} (shared_init=False), but not in {_few(free)} (shared_init=True): "
            "their bytes cannot be compared."
        )
    if free:
        return "Bytes: nobody downloads the initial model (--shared_init)."
    return "Bytes: a client's first download, the whole initial model, counts (--no-shared_init)." if counted else ""


def _few(labels):
    return ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")


def mixtures(found):
    """Return a list of sentences on the Series whose runs are of different versions of the program, or data."""
    versions, data = {}, {}  # label -> what its runs have
    for series in found:
        of_split = _versions(series.runs)  # each way to split has code of its own
        versions.setdefault(series.label, set()).update(of_split if len(of_split) > 1 else ())
        data.setdefault(series.label, set()).update({run.data for run in series.runs} - {None})
    return [
        *_mixed(versions, "runs of several versions of the program"),
        *_mixed(data, "seeds whose data differ, CRC-32"),
        *_clashes(found),
        *_repeats(found),
        *_split_clashes(found),
    ]


def _versions(runs):
    """Return the hashes of the code that the runs have, or if not all have one, their commits."""
    code = {run.code and run.code[:10] for run in runs}
    return code if None not in code else {run.commit for run in runs} - {None}


def _mixed(seen, what):
    mixed = {label: values for label, values in seen.items() if len(values) > 1}
    values = _few(sorted(set().union(*mixed.values())))
    return [f"{len(mixed)} of {len(seen)} series mix {what} ({values}): {_few(list(mixed))}."] if mixed else []


def _clashes(found):
    """Return a sentence if runs of one seed had different data, in a list."""
    seen = {}
    for run in (run for series in found for run in series.runs):
        if run.data:
            seen.setdefault(run.settings["seed"], set()).add(run.data)
    clashes = [f"{seed} ({_few(sorted(crc))})" for seed, crc in seen.items() if len(crc) > 1]
    return [f"Runs of one seed had different data (CRC-32): seed {_few(clashes)}."] if clashes else []


def _repeats(found):
    """Return a sentence for each Series that has several runs of one seed."""
    counts = {(s.label, s.level.cell): Counter(run.settings["seed"] for run in s.runs) for s in found}
    return [
        f"{label}, {cell}, has seed {seed} {n} times: runs of one seed are no seeds of their own."
        for (label, cell), seeds in counts.items()
        for seed, n in seeds.items()
        if n > 1
    ]


def _split_clashes(found):
    """Return a sentence for each split made by hand of which runs of one seed had different files."""
    seen = {}
    for series in found:
        for run in series.runs:
            if series.level.by_hand and run.partition:
                seen.setdefault((series.level.name, run.settings["seed"]), set()).add(run.partition[:8])
    return [
        f"Runs on the split {name} had different files for seed {seed} ({_few(sorted(hashes))})."
        for (name, seed), hashes in seen.items()
        if len(hashes) > 1
    ]


def left_out(found):
    """Return a line for each run of the Series that is not drawn: which, and why."""
    return [
        f"{printable(run.path)}: {run.state} after round {len(run.rounds)} of {run.settings['n_epochs']}, left out"
        for series in found
        for run in series.missing
    ]
