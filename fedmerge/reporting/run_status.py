"""What has become of the lines of experiments.txt: `python -m fedmerge.reporting.run_status FILE [--extra="--quiet"]`.

Prints a table: line, state, run. run_experiments.sh asks here, too, for everything that it knows of the list, so that
both see the same lines and words. Needs no torch.
"""

import argparse
import contextlib
import io
import os
import re
import sys
from pathlib import Path

from fedmerge import files, locks, saving
from fedmerge.config.parser import parse_args
from fedmerge.config.resolve import OUTPUTS
from fedmerge.config.run_name import differing_settings, run_name
from fedmerge.config.settings_files import read_flags, split_words
from fedmerge.errors import InputError


def lines_of(path):
    """Return the flags, a list of str, of each experiment of the file. Raises InputError: see read_flags."""
    return [words for _, words in read_flags(path)]


def parsed(words):
    """Return the settings of a run with these flags. Raises InputError, also where fedalg.py would exit."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            return parse_args(words)
    except SystemExit:
        last = said.getvalue().strip().splitlines()[-1:]
        raise InputError(last[0] if last else "not the flags of a run") from None


def state_of(words):
    """Return (state, run's name) of the experiment with these flags, in words that begin with done, running, stopped,
    failed or not started."""
    try:
        args = parsed(words)
        name = run_name(args)
    except InputError as error:
        return f"failed: {error}", " ".join(words)
    folder = Path(args.metrics_dir)
    try:
        record = saving.read_json(folder / f"{name}.json")
        if record is None:
            return "not started", name
        differing = differing_settings(args, dict(record["settings"]))
    except (InputError, KeyError, TypeError, ValueError) as error:
        return f"failed: {folder / name}.json is not the record of a run ({error})", name
    if differing:
        return f"failed: {folder / name}.json is of a run with another {differing[0]}", name
    if record.get("finished"):
        return "done", name
    place = f"round {rounds_of(folder / f'{name}_metrics.csv')} of {args.n_epochs}"
    if locks.is_held(folder / f".{name}.lock"):
        return f"running, after {place}", name
    if record.get("failed"):
        return f"failed after {place}: {record['failed']}", name
    return f"stopped after {place}", name


def rounds_of(path):
    """Return how many rounds the CSV of a run has."""
    try:
        return max(0, files.read_bytes(path, files.CSV).count(b"\n") - 1)
    except (OSError, InputError):
        return 0


def ranges(numbers):
    """Return ascending numbers as `sbatch --array` has them: [1, 2, 3, 7] is 1-3,7."""
    runs = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def figures_of(experiments):
    """Return the flags with which plotting.py draws these experiments, lists of flags; [] if there is no one folder.

    What are not the flags of a run do not count.
    """
    folders = set()
    for words in experiments:
        with contextlib.suppress(InputError):
            args = parsed(words)
            inside = args.out is not None and args.metrics_dir == os.path.join(args.out, OUTPUTS["metrics_dir"])
            folders.add(("--out", args.out) if inside else ("--csv_dir", args.metrics_dir))
    return list(folders.pop()) if len(folders) == 1 else []


def write_words(words):
    """Print words, each with a NUL behind it: no word has one, and a shell reads them as they are."""
    sys.stdout.flush()
    sys.stdout.buffer.write(b"".join(os.fsencode(word) + b"\0" for word in words))


def print_table(states):
    """Print a line for each (state, name), and how many there are of each kind."""
    width = max((len(state) for state, _ in states), default=0)
    for number, (state, name) in enumerate(states, 1):
        print(f"{number:>4}  {state:<{min(width, 60)}}  {name}")
    kinds = [re.match("not started|[a-z]+", state)[0] for state, _ in states]
    counts = {kind: kinds.count(kind) for kind in ("done", "running", "stopped", "not started", "failed")}
    print(", ".join(f"{count} {kind}" for kind, count in counts.items() if count) or "no experiments")


def build_parser():
    """Return the parser of this module as a program."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("file", help="a list such as experiments.txt")
    parser.add_argument("--extra", default="", metavar="FLAGS", help="added to every line, quoted as there")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--missing", action="store_true", help="print the numbers of the lines to be run")
    what.add_argument("--count", action="store_true", help="print how many lines there are")
    what.add_argument("--line", type=int, metavar="N", help="print the flags of the Nth line, each ended by a NUL")
    what.add_argument("--figures", action="store_true", help="print the flags of plotting.py for them, as --line does")
    return parser


def main(argv):
    args = build_parser().parse_args(argv)
    extra = split_words(args.extra, "EXTRA")
    experiments = [[*words, *extra] for words in lines_of(args.file)]
    if args.count:
        print(len(experiments))
    elif args.line is not None:
        if not 1 <= args.line <= len(experiments):
            raise InputError(f"there is no experiment {args.line}; {args.file} has 1 to {len(experiments)}")
        write_words(experiments[args.line - 1])
    elif args.figures:
        write_words(figures_of(experiments))
    elif args.missing:
        states = [state_of(words)[0] for words in experiments]
        print(ranges([n for n, state in enumerate(states, 1) if not state.startswith(("done", "running"))]))
    else:
        print_table([state_of(words) for words in experiments])


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"run_status.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
