"""Seconds a round of fedalg's own loop in each setting of the machine, and of an evaluation by the size of its batches.

    python benchmarks/settings.py [--works W1 W2 W3] [--rounds 5] [--device cuda] [--part machine clients evaluation]

For works of round_time.py. "as it is" is what the program does by itself: float32, images in channels_last memory, as
many clients at once as it chooses. Every other way changes what its name says. All take turns in one process, round by
round, and the ratio is that of the medians: below 1 the way is faster. How far apart a round leaves the models is told,
too, since a way may compute something else. A way that fails is told, and left out from there on, and so is how many
clients train at once where another way has as many. Evaluations are of 10,000 images.
"""

import argparse
import contextlib
import functools
import math
import platform
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from round_time import experiment, timed, train_round

from fedmerge import datasets
from fedmerge.datasets import images
from fedmerge.errors import reason

EVALUATED = 10_000
BATCHES = {"cpu": (64, 512), "cuda": (128, 512, 2048, 8192)}


@contextlib.contextmanager
def other(owner, name, value):
    """Let an attribute have another value within."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


contiguous = functools.partial(other, images, "MEMORY", torch.contiguous_format)


PLAIN = contextlib.nullcontext
PARTS = ("machine", "clients", "evaluation")
AS_IT_IS = "as it is"
WAYS = {  # {device: {part: {name: (settings, the context that a round takes place in)}}}, what may fail last
    "cpu": {
        "machine": {"bf16": ({"precision": "bf16"}, PLAIN), "contiguous memory": ({}, contiguous)},
        "clients": {f"{n} clients at once": ({"parallel_clients": n}, PLAIN) for n in (1, 2)},
    },
    "cuda": {
        "machine": {
            "TF32": ({}, functools.partial(other, torch.backends.cuda.matmul, "allow_tf32", True)),
            "no TF32 in convolutions": ({}, functools.partial(other, torch.backends.cudnn, "allow_tf32", False)),
            "bf16": ({"precision": "bf16"}, PLAIN),
            "cudnn.benchmark": ({}, functools.partial(other, torch.backends.cudnn, "benchmark", True)),
            "contiguous memory": ({}, contiguous),
            "captured": ({"capture": True}, PLAIN),
            "bf16, captured": ({"precision": "bf16", "capture": True}, PLAIN),
        },
        "clients": {
            **{f"{n} clients at once": ({"parallel_clients": n}, PLAIN) for n in (1, 2, 4, 8, 16, 32)},
            **{f"captured, {n} clients at once": ({"capture": True, "parallel_clients": n}, PLAIN) for n in (2, 4, 8)},
        },
    },
}


def attempt(work, name, what, *given):
    """Return what(*given), or None, with a row that says so, if it fails: a way may be none for a machine."""
    try:
        return what(*given)
    except RuntimeError as error:
        print(f"| {work} | {name} | failed: {reason(error)} | | | |".replace("\n", " "), flush=True)


def begin(work, ways, device):
    """Return {name: experiment} of the ways, but of those that are others once more."""
    runs, there = {}, set()
    for name, (settings, context) in ways.items():
        run = attempt(work, name, functools.partial(experiment, work, device, **settings))
        if run is not None:
            key = (context, settings.get("precision"), settings.get("capture"), run.clients.threads.n)
            runs |= {name: run} if key not in there else {}
            there.add(key)
    return runs


def compare(work, ways, n_rounds, device, minutes=math.inf):
    """Print a row for each of `ways`, the first being as it is: median seconds, their ratio to those, its range, how
    far apart models are. After so many `minutes` no round begins but the first that counts.
    """
    runs, begun = begin(work, ways, device), time.monotonic()
    times, apart = {name: [] for name in runs}, {}
    for r in range(1, n_rounds + 2):  # the first warms up
        if r > 2 and time.monotonic() - begun > 60 * minutes:
            break
        for name, run in list(runs.items()):
            with ways[name][1]():
                seconds = attempt(work, name, timed, train_round, run, r)
            if seconds is None:
                del runs[name], times[name]
            else:
                times[name].append(seconds)
        if AS_IT_IS not in runs:
            return tell_alone(work, times)
        if r == 1:
            plain = runs[AS_IT_IS].server.theta
            apart = {name: ((run.server.theta - plain).norm() / plain.norm()).item() for name, run in runs.items()}
    of_plain = times[AS_IT_IS][1:]
    for name, (_, *seconds) in times.items():
        ratios = [a / b for a, b in zip(seconds, of_plain, strict=True)]
        median = statistics.median(seconds)
        columns = f"{median:.3f} | {median / statistics.median(of_plain):.2f} | {min(ratios):.2f} to {max(ratios):.2f}"
        print(f"| {work} | {name} | {columns} | {apart[name]:.0e} |", flush=True)


def tell_alone(work, times):
    """Print the median seconds of the ways {name: seconds of rounds} where there is nothing to compare them with."""
    for name, (_, *seconds) in times.items():
        if seconds:
            print(f"| {work} | {name} | {statistics.median(seconds):.3f} | | | |", flush=True)


def evaluations(work, n_rounds, device):
    """Print a row for each size of batches: median seconds of an evaluation, and those of the program's own size."""
    run, sizes = experiment(work, device), BATCHES[torch.device(device).type]
    judged = run.splits.train[torch.arange(EVALUATED)]
    own = datasets.batch_size(judged)
    times = {size: [] for size in dict.fromkeys((own, *sizes))}
    for _ in range(n_rounds + 1):  # the first warms up
        for size, seconds in times.items():
            with other(datasets, "batch_size", lambda *_, size=size: size):
                took = attempt(work, size, timed, run.evaluator.predict, run.server.theta, judged)
            seconds.append(took)
        times = {size: seconds for size, seconds in times.items() if None not in seconds}  # too large for the memory
    of_own = statistics.median(times[own][1:])
    for size, (_, *seconds) in times.items():
        median = statistics.median(seconds)
        note = " (as it is)" if size == own else ""
        print(f"| {work} | {size}{note} | {median:.3f} | {median / of_own:.2f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--works", nargs="+", default=["W1", "W2"], choices=["W1", "W2", "W3", "W4"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, help="what is compared [all]")
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which a work has no further round")
    args = parser.parse_args()
    known = WAYS[torch.device(args.device).type]
    ways = {AS_IT_IS: ({}, PLAIN)}
    ways |= {name: way for part in args.part for name, way in known.get(part, {}).items()}
    print(f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads, {platform.machine()}\n")
    if len(ways) > 1:
        print("| work | setting | seconds a round | of that as it is | its range | models apart after a round |")
        print(f"|{'---|' * 6}")
        for work in args.works:
            compare(work, ways, args.rounds, args.device, args.minutes)
    if "evaluation" in args.part:
        head = f"| work | images of a batch | seconds to evaluate {EVALUATED:,} | of that as it is |"
        print(f"\n{head}\n|{'---|' * 4}")
        for work in args.works:
            evaluations(work, args.rounds, args.device)


if __name__ == "__main__":
    main()
