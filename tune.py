# PYTHON_ARGCOMPLETE_OK
"""Settings chosen by validation accuracy: python tune.py --grid lr=0.3,0.1,0.03 --seeds 0 1 -- --algorithm fedavg

Every combination of the values is run with every seed, by run_experiments.sh, and the best is chosen by the mean over
the seeds. Test accuracies have no part in it. What is in the folder --out afterwards:

    runs_XXXXXXXX.txt  the runs, a line each
    chosen.txt         the flags with the chosen values, without a seed: a list for run_experiments.sh
    choice.md, .json   all points in order, by how much the best is ahead, and whether it is at an end of its grid

    python tune.py --trials 40 --range lr=0.001..0.3 --grid local=sgd,sam --seeds 0 1 -- --algorithm fedavg

tries 40 points, each where Optuna expects most after those before it; trials that fall behind are ended early. They are
kept in trials.db, which processes that run the same command share.

The values can also be in a list, for as many settings as it has lines: python tune.py --list compare.txt --seeds 0 1,
with lines such as --algorithm fedavg --dataset CIFAR10 {lr: 0.1 | 0.03} {momentum: 0 | 0.9}. Called again, it goes on
with what is missing.
"""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

from fedmerge import startup
from fedmerge.config.completion import complete
from fedmerge.config.kinds import KINDS
from fedmerge.errors import InputError, reason
from fedmerge.startup import NOT_FINISHED
from fedmerge.tuning import grid
from fedmerge.tuning.choice import BY
from fedmerge.tuning.study import CHOSEN, REPORT, Study

LAUNCHER = Path(__file__).resolve().parent / "run_experiments.sh"


def build_parser():
    about, more = __doc__.split("\n\n", 1)
    form = argparse.RawDescriptionHelpFormatter
    usage = "tune.py [options] --grid NAME=V,V ... -- FLAGS of fedalg.py\n       tune.py [options] --list FILE"
    parser = argparse.ArgumentParser(
        prog="tune.py", usage=usage, description=about, epilog=more, formatter_class=form, allow_abbrev=False
    )
    add = parser.add_argument
    add("--grid", nargs="+", action="extend", default=[], metavar="NAME=V,V", help="values to try of a flag")
    add("--list", metavar="FILE", help="lines of flags with {NAME: V | V}; each is chosen for by itself")
    add("--range", nargs="+", action="extend", default=[], metavar="NAME=LOW..HIGH", help="numbers for --trials to try")
    add(
        "--trials",
        type=KINDS["count"],
        metavar="N",
        help="search by Optuna, with so many trials, instead of all points",
    )
    add("--seeds", type=KINDS["integer"], nargs="+", default=[0], metavar="N", help="a run of each [0]")
    add(
        "--by",
        choices=list(BY),
        default="last",
        help="validation accuracy of the last round, of the last ten or of the best [last]",
    )
    add("--out", default="tuning", metavar="DIR", help="folder of all that is written [tuning]")
    add("--jobs", type=KINDS["count"], default=1, metavar="N", help="runs at a time [1]")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--submit", action="store_true", help="submit the runs to SLURM, and choose later, by --choose")
    how.add_argument("--choose", action="store_true", help="only choose, of runs that are there")
    how.add_argument("--dry_run", action="store_true", help="only write the list of runs")
    return parser


def templates_of(args, flags):
    """Return the Templates of the command line: of a list, or of flags and a grid. Raises InputError."""
    if args.list is not None:
        if flags or args.grid:
            raise InputError("--list has the flags and the values in its lines: leave out --grid and what is behind --")
        return grid.read_templates(args.list)
    if not flags:
        raise InputError("no flags of fedalg.py behind --, such as -- --algorithm fedavg, and no --list")
    return [grid.template(flags, "the command line", args.grid, args.range)]


def launch(path, args):
    """Let run_experiments.sh run the list, or submit it; return its status. At a signal, it saves the runs."""
    foreign = ("EXTRA", "ENVIRONMENT", "SLURM_ARRAY_TASK_ID")  # flags of other runs; a batch job's script is this one
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    environment |= {"EXPERIMENTS": str(path), "JOBS": str(args.jobs)}
    launchers, heard = [], []

    def stop(number, frame):
        heard.append(number)
        for launcher in launchers:
            launcher.send_signal(signal.SIGTERM)

    for number in (*startup.SIGNALS, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves SIGHUP
            signal.signal(number, stop)
    launchers.append(subprocess.Popen([LAUNCHER, *["--submit"] * args.submit], env=environment, start_new_session=True))
    if heard:  # just now
        stop(heard[0], None)
    return launchers[0].wait()


def conclude(study):
    """Choose, and say what; return the exit status."""
    missing = study.collect()
    if missing:
        raise InputError(f"{len(missing)} of {study.n_runs} runs are not finished, such as {missing[0]}")
    print(study.write_choices(), end="")
    print(f"\n{study.out / REPORT}; the flags with the chosen values: {study.out / CHOSEN}")
    return 0 if study.all_chosen else 1


def search(study, args):
    """Let Optuna search, unless only to choose, and choose; return the exit status."""
    from fedmerge.checkpoint.policy import Interrupted
    from fedmerge.tuning.trials import Search, check_installed, warn_of_pruned

    check_installed()
    import fedalg  # once there is something to run: it imports torch

    trials = Search(study, args.trials, fedalg.main)
    try:
        if not args.choose:
            trials.run()
    except Interrupted:
        print("tune.py: stopped: the same command goes on", file=sys.stderr)
        return NOT_FINISHED
    warn_of_pruned(trials.collect())
    print(study.write_choices(), end="")
    print(f"\n{study.out / REPORT}; the flags with the chosen values: {study.out / CHOSEN}")
    return 0 if study.all_chosen else 1


def main(argv):
    behind = argv.index("--") if "--" in argv else len(argv)
    args = complete(build_parser()).parse_args(argv[:behind])
    if args.trials is None and args.range:
        raise InputError("--range is for --trials: a grid has values, as --grid lr=0.1,0.03")
    if args.trials is not None and (args.list or args.submit or args.dry_run or args.jobs > 1):
        raise InputError("--trials goes without --list, --submit, --dry_run and --jobs: call it several times at once")
    study = Study(templates_of(args, argv[behind + 1 :]), args.seeds, args.out, args.by)
    if args.trials is not None:
        return search(study, args)
    if args.choose:
        return conclude(study)
    path = study.write_list()
    print(f"{study.n_runs} runs: {path}", flush=True)
    if args.dry_run:
        return 0
    status = launch(path, args)
    if args.submit:
        return status
    if status == NOT_FINISHED:
        print("tune.py: stopped: the same command goes on", file=sys.stderr)
        return status
    return conclude(study)


if __name__ == "__main__":
    startup.mend_streams()
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        print(f"tune.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"tune.py: error: {reason(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(NOT_FINISHED)
