# PYTHON_ARGCOMPLETE_OK
"""A report of the runs in a folder: an HTML page with tables and figures to be clicked through; it needs no network.

    python report.py --csv_dir metrics --output report.html
    python report.py --experiments experiments.txt --watch 30

shows curves over rounds, megabytes and seconds, methods and runs in tables that are filtered and sorted, of each run
its settings, its split and its clients' bytes, and what has become of each line of a list of experiments.
"""

import argparse
import contextlib
import os
import signal
import sys
import time
from pathlib import Path

from fedmerge.config.completion import complete
from fedmerge.config.kinds import KINDS
from fedmerge.config.settings_files import split_words
from fedmerge.errors import InputError, reason
from fedmerge.reporting import report
from fedmerge.reporting.runs import printable
from fedmerge.saving import write_atomic


def build_parser():
    parser = argparse.ArgumentParser(
        description="A report of all runs in a folder, as one HTML page.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--out", default="", metavar="DIR", help="fedalg.py's --out: the folder of the next two")
    add("--csv_dir", help="folder of <run>_metrics.csv and <run>.json, or of the tables of a study [metrics]")
    add("--output", metavar="FILE", help="the page [report.html]")
    add("--experiments", metavar="FILE", help="tell of each line of this list, too")
    add("--extra", default="", metavar="FLAGS", help="given to every line of the list besides, quoted as there")
    add(
        "--watch",
        nargs="?",
        const=30.0,
        type=KINDS["positive"],
        metavar="SECONDS",
        help="make it again and again, and have the browser read it again, until it is interrupted [30]",
    )
    return parser


def write(args, again=None):
    """Make the page once; return what it shows."""
    extra = split_words(args.extra, "--extra")
    extra = ["--out", args.out, *extra] if args.out else extra
    content = report.content_of(args.csv_dir, args.experiments, extra)
    if not content["runs"] and not content["lines"] and not args.watch:
        raise InputError(f"no runs in {content['folder']}: run fedalg.py first")
    write_atomic(args.output, report.page_of(content, again))
    return content


def check_output(path):
    """Raise InputError if what is there is no page, but perhaps a record or a list that was meant as an input."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        if not file.read(100).lstrip().lower().startswith(b"<!doctype html"):
            raise InputError(f"--output {path}: is there already, and is no page: another name")


def watch(args):
    """Make the page every `args.watch` seconds until a signal ends it; then once more, without reading itself again."""
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(args.watch)
            try:
                write(args, args.watch)
            except (InputError, OSError) as error:  # a disk that is full for a while, a list that is being edited
                print(f"report.py: {printable(reason(error))}", file=sys.stderr)
    write(args)


def main(argv=None):
    args = complete(build_parser()).parse_args(argv)
    args.csv_dir = args.csv_dir or str(Path(args.out, "metrics"))
    args.output = args.output or str(Path(args.out, "report.html"))
    check_output(args.output)
    content = write(args, args.watch)
    told = f"{args.output}: {len(content['runs'])} runs"
    print(told + (f", made again every {args.watch:g} s: Ctrl-C ends it" if args.watch else ""), flush=True)
    if args.watch:
        watch(args)


def interrupt(*_):
    raise KeyboardInterrupt


def program(argv=None):
    """Run `main`; return the exit status; say in one line what went wrong."""
    sys.stdout.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, interrupt)
    try:
        main(argv)
    except KeyboardInterrupt:
        return 130
    except (InputError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        print(f"report.py: error: {printable(reason(error))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(program())
