"""What has become of the lines of experiments.txt: `python experiments.py FILE [--missing] [-- EXTRA FLAGS]`.

Prints a table: line, state, run. With --missing, the numbers of those that are neither finished nor under way, as
`sbatch --array` has them, or nothing. Needs no torch.
"""

import argparse
import contextlib
import io
import re
import sys
from pathlib import Path

import files
import records
import utils
from utils import InputError


def lines_of(path):
    """Return the flags, a list of str, of each experiment of the file: comments and empty lines dropped, no quoting.

    Raises InputError if it cannot be read.
    """
    try:
        lines = files.read_text(path, files.LIST).split("\n")  # as the shell sees lines, and nothing else
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    split = (re.split("[ \t]+", re.sub("#.*", "", line.removesuffix("\r")).strip(" \t")) for line in lines)
    return [words for words in split if words != [""]]


def state_of(words):
    """Return (state, run's name) of the experiment with these flags, in words that begin with done, running, stopped,
    failed or not started."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            args = utils.parse_args(words)
            name = utils.run_name(args)
    except SystemExit:
        last = said.getvalue().strip().splitlines()[-1:]
        return f"failed: {last[0] if last else 'not the flags of a run'}", " ".join(words)
    except InputError as error:
        return f"failed: {error}", " ".join(words)
    folder = Path(args.metrics_dir)
    try:
        record = records.read_json(folder / f"{name}.json")
        if record is None:
            return "not started", name
        differing = utils.differing_settings(args, dict(record["settings"]))
    except (InputError, KeyError, TypeError, ValueError) as error:
        return f"failed: {folder / name}.json is not the record of a run ({error})", name
    if differing:
        return f"failed: {folder / name}.json is of a run with another {differing[0]}", name
    if record.get("finished"):
        return "done", name
    place = f"round {rounds_of(folder / f'{name}_metrics.csv')} of {args.n_epochs}"
    if records.is_held(folder / f".{name}.lock"):
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


def main(argv):
    own, extra = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("file", help="a list such as experiments.txt")
    parser.add_argument("--missing", action="store_true", help="print the numbers of the lines that are to be run")
    args = parser.parse_args(own)
    states = [state_of([*words, *extra]) for words in lines_of(args.file)]
    if args.missing:
        print(ranges([n for n, (state, _) in enumerate(states, 1) if not state.startswith(("done", "running"))]))
        return
    width = max((len(state) for state, _ in states), default=0)
    for number, (state, name) in enumerate(states, 1):
        print(f"{number:>4}  {state:<{min(width, 60)}}  {name}")
    kinds = [re.match("not started|[a-z]+", state)[0] for state, _ in states]
    counts = {kind: kinds.count(kind) for kind in ("done", "running", "stopped", "not started", "failed")}
    print(", ".join(f"{count} {kind}" for kind, count in counts.items() if count) or "no experiments")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"experiments.py: error: {error}", file=sys.stderr)
        sys.exit(2)
