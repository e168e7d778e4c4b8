"""All that needs a GPU, in one command that can be stopped and started again: one Markdown and one JSON file of it.

    python benchmarks/gpu_report.py [--folder gpu-report] [--minutes 9] [--steps tests round ...] [--again] [--list]

Steps are the CUDA tests and the benchmarks of this folder, work by work. What a step printed is kept in --folder once
it has ended, and the step is not run again: where --minutes are over, call this once more for the rest. The two files,
report.md and report.json, are written after every step, with the device, versions, dates and commits, and say what is
open. Exit status: 0 if all steps that were asked for are done, 3 if some are left for the next call, 1 if one failed.

All works are of random images in CIFAR-10's shape: nothing is needed but what is in the repository.
"""

import argparse
import contextlib
import datetime
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fedmerge import provenance
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
        steps[f"settings {work}"] = Step(f"Settings of {work}", of("settings", "--works", work, "--rounds", "3"), 5)
    steps["merging"] = Step("Choosing and merging updates of a ResNet-50", of("merging", "--rounds", "7"))
    for model in ("cnn", "resnet18"):
        steps[f"local {model}"] = Step(f"Local methods, {model}", of("local_methods", "--models", model))
    steps["alternatives"] = Step("vmap over clients, and compiled networks", of("alternatives"), 5)
    for peer in ("pfl", "flwr"):
        if (ROOT / ".benchmarks" / peer / "installed").exists():  # making its environment needs a network
            steps[peer] = Step(f"W2 against {peer}", of("peers", "--works", "W2", "--others", peer), 5)
    return steps


# --------------------------------------------------------------------------------------------------------------------
# One step


def stop(process):
    """End a process with all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(step, device, log):
    """Run a Step, what it prints going to the file `log`; return {what: of it}, its exit status as `rc`."""
    words = [sys.executable, *(word.format(device=device) for word in step.words)]
    started, at = time.monotonic(), datetime.datetime.now().isoformat(timespec="seconds")
    with open(log, "w") as out:
        process = subprocess.Popen(words, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            rc = process.wait(60 * step.minutes)
        except subprocess.TimeoutExpired:
            rc = f"stopped after {step.minutes:g} minutes"
        finally:
            stop(process)
    found = {"title": step.title, "command": " ".join(["python", *words[1:]]), "at": at}
    return {**found, "seconds": round(time.monotonic() - started, 1), "rc": rc, "output": log.read_text()}


def machine(device):
    """Return {what: of this machine}: device, versions, commit."""
    found = {**provenance.environment(torch.device(device)), "cores": os.cpu_count()}
    if torch.device(device).type == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory
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


def tables(text):
    """Return the Markdown tables in a text, each as a list of {column: cell}, numbers as such."""
    found, header = [], None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            header = None
        elif header is None:
            header = cells
            found.append([])
        elif set("".join(cells)) - set("-:"):
            found[-1].append(dict(zip(header, map(number, cells), strict=True)))
    return found


def section(found):
    """Return the lines of the report on a step."""
    ended, output = found["rc"] == 0, found["output"].strip()
    head = f"`{found['command']}`, {found['at']}, commit {found['commit']}, {found['seconds']} s"
    state = [] if ended else [f"**Not done: {found['rc'] if isinstance(found['rc'], str) else 'it failed'}.**", ""]
    body = output if ended and tables(output) else f"```text\n{output}\n```"
    return [f"## {found['title']}", "", head, "", *state, body, ""]


class Folder:
    """Where a report is kept: a JSON file a step, and those that are made of them."""

    def __init__(self, path, steps):
        self.path, self.steps = path, steps
        path.mkdir(parents=True, exist_ok=True)

    def file(self, name, suffix="json"):
        return self.path / f"{name.replace(' ', '_')}.{suffix}"

    def known(self):
        """Return {name: what is known} of the steps that have been run."""
        found = {name: read_json(self.file(name)) for name in self.steps}
        return {name: step for name, step in found.items() if step is not None}

    def forget_failed(self):
        for name, found in self.known().items():
            if found["rc"] != 0:
                self.file(name).unlink()

    def report(self, about):
        """Write report.md and report.json of all that has been run."""
        known = self.known()
        left = [name for name in self.steps if name not in known]
        lines = ["# On a GPU", "", *(f"- {what}: {value}" for what, value in about.items())]
        lines += [f"- open: {', '.join(left) or 'nothing'}", ""]
        for found in known.values():
            lines += section(found)
        write_atomic(self.path / "report.md", "\n".join(lines))
        with_tables = {name: {**found, "tables": tables(found["output"])} for name, found in known.items()}
        write_json(self.path / "report.json", {"machine": about, "open": left, "steps": with_tables})


def go(folder, wanted, device, minutes):
    """Run the steps `wanted` that have not been run while there is time; return the names of those left."""
    ends, about = time.monotonic() + 60 * minutes, machine(device)
    left = [name for name in wanted if name not in folder.known()]
    while fits := [name for name in left if time.monotonic() + 60 * folder.steps[name].minutes <= ends]:
        name = fits[0]
        print(f"{name}: at most {folder.steps[name].minutes:g} minutes", flush=True)
        found = {**run(folder.steps[name], device, folder.file(name, "log")), "commit": about["commit"]}
        print(f"{name}: exit status {found['rc']}, {found['seconds']} s", flush=True)
        write_json(folder.file(name), found)
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
    if max(steps[name].minutes for name in wanted) > args.minutes:
        parser.error(f"--minutes {args.minutes:g}: a step may take {max(steps[n].minutes for n in wanted):g}")
    if torch.device(args.device).type == "cuda" and not torch.cuda.is_available() and not args.list:
        parser.error("there is no CUDA device here")
    folder = Folder(args.folder, steps)
    if args.list:
        for name in wanted:
            print(f"{name}: {steps[name].title}: {folder.known().get(name, {'rc': 'open'})['rc']}")
        return 0
    if args.again:
        folder.forget_failed()
    left = go(folder, wanted, args.device, args.minutes)
    print(f"{folder.path / 'report.md'}, {folder.path / 'report.json'}; left: {', '.join(left) or 'nothing'}")
    return 3 if left else int(any(folder.known()[name]["rc"] != 0 for name in wanted))


if __name__ == "__main__":
    sys.exit(main())
