# PYTHON_ARGCOMPLETE_OK
"""Figures and tables from the CSV and JSON files of runs, or from the two tables that many runs are packed into.

    python plotting.py --csv_dir metrics --output_dir final_plots --dataset CIFAR10
    python plotting.py --csv_dir metrics --pack results/mine
    python plotting.py --csv_dir results/mine

draws, for every split of the data, all series over rounds and over megabytes (mean and deviation over the seeds; runs
of --algorithm centralised as lines across), and writes two tables as CSV, Markdown and LaTeX, all from the same files:
a summary, and what it took to reach 99 % of the accuracy of the reference, by default the best plain FedAvg.
"""

import argparse
import hashlib
import math
import os
import re
import sys
from collections import Counter
from pathlib import Path

from fedmerge.config.completion import complete
from fedmerge.config.declarations import check_declarations
from fedmerge.config.kinds import KINDS
from fedmerge.errors import InputError, did_you_mean, reason
from fedmerge.reporting import comparable, curves, results_csv, tables
from fedmerge.reporting import series as grouping
from fedmerge.reporting.packing import pack, unpack
from fedmerge.reporting.run_figures import plot_clients, plot_run
from fedmerge.reporting.run_tables import RECORDS, ROUNDS
from fedmerge.reporting.runs import load_runs, printable

__all__ = ["compare", "main", "plot_clients", "plot_run"]


def build_parser():
    parser = argparse.ArgumentParser(
        description="Compare the runs of a dataset: figures and tables.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--out", default="", metavar="DIR", help="fedalg.py's --out: the folder of the next two")
    add("--csv_dir", help=f"folder of <run>_metrics.csv and <run>.json, or of {ROUNDS} and {RECORDS} [metrics]")
    add("--output_dir", help="folder for figures and tables [final_plots]")
    add("--dataset", help="default: every dataset that has a finished run")
    add("--at", type=int, nargs="+", default=[], metavar="R", help="rounds after which the summary tells the accuracy")
    add("--unfinished", action="store_true", help="draw runs that did not end, too, as series of their own")
    add("--mix", action="store_true", help="draw runs with and without --shared_init together")
    add(
        "--methods",
        nargs="+",
        metavar="M",
        help="which series, in which order: their labels, or algorithms for all series of these",
    )
    add("--label", action="append", default=[], metavar="OLD=NEW", help="another label for a series; may be repeated")
    add(
        "--reference",
        metavar="LABEL",
        help="the series that others are compared with; default: the plain FedAvg with the best validation accuracy",
    )
    add("--panels", nargs="+", choices=curves.PANELS, default=list(curves.PANELS), help="of the comparison [all four]")
    add("--ylim", type=float, nargs=2, metavar=("LOW", "HIGH"), help="limits of the comparison's accuracy, in %%")
    add("--width", type=KINDS["positive"], metavar="INCHES", help="width of the figures")
    add("--font", type=KINDS["positive"], metavar="POINTS", help="size of their letters [9]")
    other = parser.add_mutually_exclusive_group().add_argument
    other(
        "--rebuild_results",
        nargs="?",
        const="",
        metavar="FILE",
        help="draw nothing; put the rows of all finished runs into this CSV [results.csv] again",
    )
    other("--pack", metavar="DIR", help=f"draw nothing; put all runs into {ROUNDS} and {RECORDS} of this folder")
    other("--unpack", metavar="DIR", help="draw nothing; put the files of all runs of such tables into this folder")
    return parser


def compare(runs, dataset, args, notes=()):
    """Draw all figures of the Runs, which are of `dataset`, and write its tables, as the flags `args` say.

    notes: sentences to stand under the tables. Returns {name: Table} and the paths written. Raises InputError if there
    is nothing to draw, or if it cannot be compared.
    """
    found, bounds = grouping.with_bounds(runs, args.unfinished)
    grouping.rename(found + bounds, args.label)
    others = found
    if args.methods:
        found, bounds = grouping.choose(found, bounds, args.methods)
    if not any(series.runs for series in found):
        raise InputError(f"nothing to draw: {_states(runs)}; --unfinished draws what there is of them")
    reference = grouping.pick_reference(found if args.reference is None else others, args.reference)
    compared = [*found, *(series for series in reference.of.values() if series not in found)]
    convention = comparable.convention(compared, args.mix)
    mixed = comparable.mixtures(compared + bounds)
    lines = [*comparable.left_out(found + bounds), *(f"{dataset}: {sentence}" for sentence in mixed)]
    lines += [f"{dataset}: no run was evaluated after round {n}" for n in args.at if not _evaluated_after(n, found)]
    for line in lines:
        warn(line)
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    written = draw(found, bounds, dataset, [convention, *mixed], args)
    notes = [note for note in (convention, *mixed, *notes) if note]
    made = tables.tables_of(dataset, found, bounds, reference, args.at, notes)
    written += [table.write(Path(args.output_dir) / f"{file_name(dataset)}_{name}") for name, table in made.items()]
    return made, written


def _evaluated_after(n, found):
    return any(len(tables.accuracies_after(n, series.runs)) for series in found)


def draw(found, bounds, dataset, notes, args):
    """Draw the figures of every level into args.output_dir; return the paths of the PNGs."""
    written = []
    for level in dict.fromkeys(series.level for series in found):
        here, title = [series for series in found if series.level == level], f"{dataset}, {level.title}"
        path = Path(args.output_dir) / f"{file_name(dataset)}_{file_name(level.file, '_')}"
        look = {"panels": args.panels, "width": args.width, "ylim": args.ylim}
        curves.draw_comparison(here, f"{path}_comparison", title, notes, bounds, **look)
        curves.draw_train_val(here, f"{path}_train_val", title, notes, args.width)
        written += [f"{path}_{kind}.png" for kind in ("comparison", "train_val")]
    return written


def file_name(text, also=""):
    """Return the text as a part of a file's name: letters, digits, ".", "-" and the characters `also`, no dot first.

    Different texts give different names: a hash stands for what is changed in them.
    """
    plain = re.sub(rf"[^A-Za-z0-9.{also}-]", "-", text)[:100]
    plain = re.sub(r"^\.", "-", plain)
    return plain if plain == text else f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def warn(text):
    print(f"warning: {printable(text)}", file=sys.stderr)


def _states(runs):
    counts = Counter(run.state for run in runs)
    return ", ".join(f"{n} {state}" for state, n in counts.items()) or "no run"


def _datasets(runs, args):
    """Return {dataset: Runs} of what to draw: args.dataset, or every dataset that has a finished run.

    Raises InputError if that is none.
    """
    found = {}
    for run in runs:
        found.setdefault(run.settings["dataset"], []).append(run)
    if args.dataset is not None and args.dataset not in found:
        hint = did_you_mean(args.dataset, found)
        others = f", only of {', '.join(found)}" if found else ""
        raise InputError(f"no finished run of {args.dataset} in {args.csv_dir}{others}{hint}")
    if args.dataset is not None:
        return {args.dataset: found[args.dataset]}
    drawable = {}
    for dataset, members in sorted(found.items()):
        if args.unfinished or any(run.state == "finished" for run in members):
            drawable[dataset] = members
        else:
            warn(f"{dataset}: no finished run, but {_states(members)}: left out")
    if not drawable:
        raise InputError(f"no finished run in {args.csv_dir} ({_states(runs)}): run fedalg.py first")
    return drawable


def _check(args):
    """Raise InputError for flags that make no sense."""
    if args.ylim and not (math.isfinite(sum(args.ylim)) and args.ylim[0] < args.ylim[1]):
        raise InputError("--ylim: the lower limit comes first, as in --ylim 40 70")
    if args.width and not 1 <= args.width <= 40:
        raise InputError("--width: from 1 to 40 inches")
    if args.font and not 3 <= args.font <= 40:
        raise InputError("--font: from 3 to 40 points")
    for pair in args.label:
        if "=" not in pair:
            raise InputError(f"--label {pair!r}: is not OLD=NEW")


def main(argv=None):
    """Draw what the command line says, and print the tables; return the exit status."""
    args = complete(build_parser()).parse_args(argv)
    args.csv_dir = args.csv_dir or str(Path(args.out, "metrics"))
    args.output_dir = args.output_dir or str(Path(args.out, "final_plots"))
    _check(args)
    if rewrite(args):
        return 0
    if args.font:
        curves.plt.rcParams["font.size"] = args.font
    runs, foreign = load_runs(args.csv_dir)
    for path, fault in foreign.items():
        warn(f"{path}: left out, since it is no record of a run: {fault}")
    n = (
        f"{len(foreign)} files of the folder that are no records"
        if len(foreign) > 1
        else "1 file of the folder that is no record"
    )
    notes = [f"Left out: {n} of a run."] if foreign else []
    said, faults = [], []
    for dataset, members in _datasets(runs, args).items():
        try:
            made, written = compare(members, dataset, args, notes)
        except (InputError, OSError) as error:
            faults.append(f"{dataset}: {reason(error)}")
        except Exception as error:  # whatever it is, the other datasets are drawn
            faults.append(f"{dataset}: {type(error).__name__}: {reason(error)}")
        else:
            said += [table.text() for table in made.values()]
            said.append(f"figures and tables: {', '.join(map(printable, written))}\n")
    for fault in faults:
        print(f"plotting.py: error: {printable(fault)}", file=sys.stderr)
    print(*said, sep="\n", end="")
    return 2 if faults else 0


def rewrite(args):
    """Do what is asked for instead of figures, if anything is, and say so; tell whether it was."""
    if (args.rebuild_results, args.pack, args.unpack) == (None, None, None):
        return False
    check_declarations()
    if not Path(args.csv_dir).is_dir():
        raise InputError(f"--csv_dir {os.path.abspath(args.csv_dir)}: there is no such folder")
    if args.rebuild_results is not None:
        file = args.rebuild_results or str(Path(args.out, "results.csv"))
        print(f"{file}: {results_csv.rebuild_results(args.csv_dir, file)} finished runs of {args.csv_dir}")
    elif args.pack is not None:
        print(f"{args.pack}: {ROUNDS} and {RECORDS} of {pack(args.csv_dir, args.pack)} runs of {args.csv_dir}")
    else:
        print(f"{args.unpack}: the files of {unpack(args.csv_dir, args.unpack)} runs of {args.csv_dir}")
    return True


def program(argv=None):
    """Run `main`; return the exit status; say in one line what went wrong."""
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = main(argv)
        sys.stdout.flush()
    except (InputError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # nobody reads on, as with `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        print(f"plotting.py: error: {printable(reason(error))}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(program())
