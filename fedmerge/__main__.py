"""`python -m fedmerge`: what is in a folder of runs. Nothing here imports torch."""

import argparse
import os
import sys

from fedmerge.errors import InputError, reason
from fedmerge.reporting import run_list


def build_parser():
    """Return the parser of this program."""
    parser = argparse.ArgumentParser(
        prog="python -m fedmerge", description=__doc__.partition(": ")[2], allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    runs = commands.add_parser("runs", help="list what ran, and what is running")
    runs.add_argument("folder", nargs="?", default="metrics", help="with the records of runs, or an --out folder")
    show = commands.add_parser("show", help="all that is known of a run, and its split")
    show.add_argument("run")
    diff = commands.add_parser("diff", help="settings in which two runs differ, and their figures")
    diff.add_argument("run")
    diff.add_argument("other")
    rm = commands.add_parser("rm", help="remove all that runs left; asks first")
    rm.add_argument("run", nargs="+")
    rm.add_argument("--yes", action="store_true", help="do not ask; whole names or numbers only")
    for command in (show, diff, rm):
        command.add_argument("--csv_dir", default="metrics", metavar="FOLDER", help="with the records [metrics]")
    said = "a run: its name, a part of it that no other has, its number in the list, or its .json"
    show.epilog = diff.epilog = rm.epilog = said
    return parser


def confirmed(question):
    """Return whether the answer that is typed is yes; nobody to type is no."""
    print(question, end="", flush=True)
    return sys.stdin is not None and sys.stdin.readline().strip().lower() in ("y", "yes")


def main(argv=None):
    """Do what the command line says; return the exit status."""
    args = build_parser().parse_args(argv)
    if args.command == "runs":
        run_list.print_runs(args.folder)
    elif args.command == "show":
        run_list.show(args.csv_dir, args.run)
    elif args.command == "diff":
        run_list.diff(args.csv_dir, args.run, args.other)
    elif not run_list.remove(args.csv_dir, args.run, None if args.yes else confirmed):
        print("nothing was removed")
        return 1
    return 0


def program(argv=None):
    """Run `main`; return the exit status; say in one line what went wrong."""
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = main(argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # nobody reads on, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (InputError, OSError) as error:
        print(f"python -m fedmerge: error: {run_list.printable(reason(error))}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(program())
