"""All that needs a GPU, in one command that can be stopped and started again: one Markdown and one JSON file of it.

    python benchmarks/gpu_report.py [--folder gpu-report] [--minutes 9] [--steps tests round ...] [--again] [--list]

Steps are the CUDA tests and the benchmarks of this folder, work by work. What a step printed is kept in --folder once
it has ended, and the step is not run again on such a device: where --minutes are over, call this once more for the
rest. The two files, report.md and report.json, are written after every step, with the device, versions, date and commit
of each, and say what is open and what failed. Exit status: 0 if all steps that were asked for are done, 3 if some are
left for the next call, 1 if one failed. A folder is for one call at a time, and a step that outlives its call counts.

All works are of random images in CIFAR-10's shape: nothing is needed but what is in the repository. Only the other
simulators need environments of their own, which `peers.py` makes from the network: without them, they are left out.
"""

import argparse
import contextlib
import datetime
import fcntl
import itertools
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

PEERS = ("pfl", "flwr")
ERRORS = 5000  # characters of what a step says beside its figures that are kept, the last ones
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fedmerge import provenance
from fedmerge.errors import InputError, reason
from fedmerge.saving import read_json, write_atomic, write_json


@dataclass(frozen=True)
class Step:
    """A command (words after `python`), and the minutes after which it is stopped."""

    title: str
    words: tuple
    minutes: float = 3


def all_steps():
    """Return {name: Step}, first those that the others' figures depend on."""

    def of(script, *words):
        return f"benchmarks/{script}.py", *words, "--device", "{device}"

    steps = {
        "tests": Step("The CUDA tests", ("-m", "pytest", "-q", "-rs", "-m", "gpu", "tests"), 6),
        "round": Step("A round against a bare loop", of("round_time", "--works", "W1", "W2", "W3", "W4"), 6),
    }
    for work in ("W3", "W2", "W1"):
        others = ("--others", "bare loop", "data loaders")
        steps[f"loaders {work}"] = Step(f"{work} against DataLoaders", of("peers", "--works", work, *others))
        steps[f"limits {work}"] = Step(f"{work} against its limits", of("limits", "--works", work), 4)
        for part in ("machine", "clients", "evaluation"):
            words = of("settings", "--works", work, "--rounds", "3", "--part", part, "--minutes", "4")
            steps[f"settings {work} {part}"] = Step(f"Settings of {work}, {part}", words, 6)
    steps["merging"] = Step("Choosing and merging updates of a ResNet-50", of("merging", "--rounds", "7"))
    for model in ("cnn", "resnet18"):
        steps[f"local {model}"] = Step(f"Local methods, {model}", of("local_methods", "--models", model))
    steps["alternatives"] = Step("vmap over clients, and compiled networks", of("alternatives"), 5)
    for peer in PEERS:
        if installed(peer):
            steps[peer] = Step(f"W2 against {peer}", of("peers", "--works", "W2", "--others", peer), 5)
    return steps


def installed(peer):
    """Tell whether another simulator has its environment: making it needs a network."""
    return (ROOT / ".benchmarks" / peer / "installed").exists()


# --------------------------------------------------------------------------------------------------------------------
# One step


def stop(process):
    """End a process with all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(step, device, path, lock):
    """Run a Step, what it prints going to files that begin with `path`; return {what: of it}, its exit status as `rc`.

    lock: a file descriptor that it inherits, so that who holds the folder is told even if this process is killed.
    """
    words = [sys.executable, "-u", *(word.format(device=device) for word in step.words)]
    started, at = time.monotonic(), datetime.datetime.now().isoformat(timespec="seconds")
    path.parent.mkdir(parents=True, exist_ok=True)
    logs = [path.with_name(f"{path.name}.{kind}") for kind in ("out", "err")]
    with open(logs[0], "w") as out, open(logs[1], "w") as err:
        process = subprocess.Popen(words, cwd=ROOT, stdout=out, stderr=err, start_new_session=True, pass_fds=(lock,))
        try:
            rc = process.wait(60 * step.minutes)
        except subprocess.TimeoutExpired:
            rc = f"stopped after {step.minutes:g} minutes"
        finally:
            stop(process)
    output, errors = (log.read_text(encoding="utf-8", errors="replace") for log in logs)
    found = {"title": step.title, "command": shlex.join(["python", *words[2:]]), "at": at, "rc": rc}
    return {**found, "seconds": round(time.monotonic() - started, 1), "output": output, "errors": errors[-ERRORS:]}


@contextlib.contextmanager
def ending_with_children():
    """Let a signal that ends this process end what it has started, too."""

    def end(number, frame):
        raise SystemExit(128 + number)

    heard = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in heard}  # nohup's choice stays
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def machine(device):
    """Return {what: of this machine}: device, versions, commit."""
    found = {**provenance.environment(torch.device(device)), "cores": os.cpu_count()}
    if torch.device(device).type == "cuda":
        memory = torch.cuda.get_device_properties(torch.device(device)).total_memory
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "gpu_memory": memory}
    return found


# --------------------------------------------------------------------------------------------------------------------
# The report


def number(cell):
    """Return a cell as a number, where it is one and finite."""
    try:
        value = float(cell.replace(",", ""))
    except ValueError:
        return cell
    return value if math.isfinite(value) else cell


SEPARATOR = re.compile(r"\|(\s*:?-{3,}:?\s*\|)+\s*")


def tables(text):
    """Return the Markdown tables in a text, each as a list of {column: cell}, numbers as such.

    What is no row of a table, such as a line that was cut off, is passed over.
    """
    found, header, lines = [], [], text.splitlines()
    for line, after in itertools.zip_longest(lines, lines[1:], fillvalue=""):
        cells = [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]
        if line.startswith("|") and SEPARATOR.fullmatch(after):
            header = cells
            found.append([])
        elif line.startswith("|") and len(cells) == len(header) and not SEPARATOR.fullmatch(line):
            found[-1].append(dict(zip(header, map(number, cells), strict=True)))
    return found


def section(found, about):
    """Return the lines of the report on a step; `about` is what the report says of the machine."""
    ended, output, errors = found["rc"] == 0, found["output"].strip(), found["errors"].strip()
    head = f"`{found['command']}`, {found['at']}, {found['seconds']} s"
    differ = [f"{what} {value}" for what, value in found["machine"].items() if about.get(what) != value]
    state = [] if ended else [f"**Not done: {found['rc'] if isinstance(found['rc'], str) else 'it failed'}.**", ""]
    body = [output if tables(output) else f"```text\n{output}\n```", ""]
    body += [f"```text\n{errors}\n```", ""] if errors and not ended else []
    return [f"## {found['title']}", "", ", ".join([head, *differ]), "", *state, *body]


class Folder:
    """Where a report on one kind of device is kept: a JSON file a step, and those that are made of them."""

    def __init__(self, path, steps, device):
        self.path, self.steps, self.device = path, steps, device

    def file(self, name, suffix=""):
        return self.path / (re.sub("[ :]", "_", f"{self.device}_{name}") + suffix)

    def known(self):
        """Return {name: what is known} of the steps that have been run."""
        found = {name: read_json(self.file(name, ".json")) for name in self.steps}
        return {name: step for name, step in found.items() if step is not None}

    def left(self, wanted, again=False):
        """Return those of the steps `wanted` that have not been run, or, with `again`, that failed."""
        known = self.known()
        return [name for name in wanted if name not in known or (again and known[name]["rc"] != 0)]

    def report(self, about):
        """Write report.md and report.json of all that has been run."""
        known = self.known()
        left = [name for name in self.steps if name not in known]
        failed = [name for name, found in known.items() if found["rc"] != 0]
        lines = ["# On a GPU", "", *(f"- {what}: {value}" for what, value in about.items())]
        lines += [f"- open: {', '.join(left) or 'nothing'}", f"- failed: {', '.join(failed) or 'nothing'}"]
        lines += [f"- left out: {peer}, which has no environment here" for peer in PEERS if not installed(peer)] + [""]
        for found in known.values():
            lines += section(found, about)
        write_atomic(self.path / "report.md", "\n".join(lines))
        with_tables = {name: {**found, "tables": tables(found["output"])} for name, found in known.items()}
        write_json(self.path / "report.json", {"machine": about, "open": left, "failed": failed, "steps": with_tables})

    @contextlib.contextmanager
    def alone(self):
        """Hold the folder, and hand out the file descriptor that does. Raises InputError if another process does."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{self.path}: a step of another call is going on there") from None
            yield lock.fileno()


def go(folder, wanted, minutes, again=False):
    """Run the steps `wanted` that have not been run, or, with `again`, that failed, while there is time.

    The first always begins. Returns the names of those left.
    """
    ends, about, begun = time.monotonic() + 60 * minutes, machine(folder.device), False
    with ending_with_children(), folder.alone() as lock:
        left = folder.left(wanted, again)
        while fits := [n for n in left if not begun or time.monotonic() + 60 * folder.steps[n].minutes <= ends]:
            name, begun = fits[0], True
            print(f"{name}: at most {folder.steps[name].minutes:g} minutes", flush=True)
            found = {**run(folder.steps[name], folder.device, folder.file(name), lock), "machine": about}
            print(f"{name}: exit status {found['rc']}, {found['seconds']} s", flush=True)
            write_json(folder.file(name, ".json"), found)
            folder.report(about)
            left.remove(name)
        folder.report(about)
    return left


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("gpu-report"))
    parser.add_argument("--minutes", type=float, default=9, help="no step begins that could end after these [9]")
    parser.add_argument("--steps", nargs="+", metavar="STEP", help="only those whose names begin so")
    parser.add_argument("--again", action="store_true", help="run those that failed or were stopped again")
    parser.add_argument("--list", action="store_true", help="print the steps and what became of them")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args(argv)
    steps = all_steps()
    wanted = [name for name in steps if not args.steps or name.startswith(tuple(args.steps))]
    if not wanted:
        parser.error(f"--steps {' '.join(args.steps)}: there are {', '.join(steps)}")
    folder = Folder(args.folder, steps, args.device)
    try:
        known, longest = folder.known(), max((steps[n].minutes for n in folder.left(wanted, args.again)), default=0)
        torch.device(args.device)
    except (InputError, RuntimeError) as error:
        parser.error(reason(error))
    if args.list:
        for name in wanted:
            print(f"{name}: {steps[name].title}: {known.get(name, {'rc': 'open'})['rc']}")
        return 0
    if longest > args.minutes:
        parser.error(f"--minutes {args.minutes:g}: a step may take {longest:g}")
    if torch.device(args.device).type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    try:
        left = go(folder, wanted, args.minutes, args.again)
    except InputError as error:
        parser.error(str(error))
    print(f"{folder.path / 'report.md'}, {folder.path / 'report.json'}; left: {', '.join(left) or 'nothing'}")
    return 3 if left else int(any(folder.known()[name]["rc"] != 0 for name in wanted))


if __name__ == "__main__":
    sys.exit(main())
