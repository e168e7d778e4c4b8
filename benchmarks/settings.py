"""Seconds a round of fedalg's own loop in each setting of the machine, and of an evaluation by the size of its batches.

    python benchmarks/settings.py [--works W1 W2 W3] [--rounds 5] [--device cuda] [--ways captured bf16 ...]

For works of round_time.py. "as it is" is what the program does by itself: float32, images in channels_last memory, as
many clients at once as it chooses. Every other way changes what its name says. All take turns in one process, round by
round, and the ratio is that of the medians: below 1 the way is faster. How far apart a round leaves the models is told,
too, since a way may compute something else. Evaluations are of 10,000 images.
"""

import argparse
import contextlib
import functools
import platform
import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from round_time import experiment, timed, train_round

from fedmerge import datasets
from fedmerge.datasets import images

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
WAYS = {  # {device: {name: (settings, the context that a round takes place in)}}
    "cpu": {
        "as it is": ({}, PLAIN),
        "bf16": ({"precision": "bf16"}, PLAIN),
        "contiguous memory": ({}, contiguous),
        "1 client at once": ({"parallel_clients": 1}, PLAIN),
        "2 clients at once": ({"parallel_clients": 2}, PLAIN),
    },
    "cuda": {
        "as it is": ({}, PLAIN),
        "captured": ({"capture": True}, PLAIN),
        "TF32": ({}, functools.partial(other, torch.backends.cuda.matmul, "allow_tf32", True)),
        "no TF32 in convolutions": ({}, functools.partial(other, torch.backends.cudnn, "allow_tf32", False)),
        "bf16": ({"precision": "bf16"}, PLAIN),
        "bf16, captured": ({"precision": "bf16", "capture": True}, PLAIN),
        "cudnn.benchmark": ({}, functools.partial(other, torch.backends.cudnn, "benchmark", True)),
        "contiguous memory": ({}, contiguous),
        **{f"{n} clients at once": ({"parallel_clients": n}, PLAIN) for n in (1, 2, 4, 8, 16, 32)},
        **{f"captured, {n} clients at once": ({"capture": True, "parallel_clients": n}, PLAIN) for n in (2, 4, 8)},
    },
}


def compare(work, ways, n_rounds, device):
    """Print a row for each of `ways`: median seconds, their ratio to those as it is, its range, how far apart."""
    runs = {name: experiment(work, device, **settings) for name, (settings, _) in ways.items()}
    times, apart = {name: [] for name in ways}, {}
    for r in range(1, n_rounds + 2):  # the first warms up
        for name, run in runs.items():
            with ways[name][1]():
                times[name].append(timed(train_round, run, r))
        if r == 1:
            plain = next(iter(runs.values())).server.theta
            apart = {name: ((run.server.theta - plain).norm() / plain.norm()).item() for name, run in runs.items()}
    of_plain = next(iter(times.values()))[1:]
    for name, (_, *seconds) in times.items():
        ratios = [a / b for a, b in zip(seconds, of_plain, strict=True)]
        median = statistics.median(seconds)
        columns = f"{median:.3f} | {median / statistics.median(of_plain):.2f} | {min(ratios):.2f} to {max(ratios):.2f}"
        print(f"| {work} | {name} | {columns} | {apart[name]:.0e} |", flush=True)


def evaluations(work, n_rounds, device):
    """Print a row for each size of batches: median seconds of an evaluation, and those of the program's own size."""
    run, sizes = experiment(work, device), BATCHES[torch.device(device).type]
    judged = run.splits.train[torch.arange(EVALUATED)]
    own = datasets.batch_size(judged)
    times = {size: [] for size in dict.fromkeys((own, *sizes))}
    for _ in range(n_rounds + 1):  # the first warms up
        for size, seconds in times.items():
            with other(datasets, "batch_size", lambda *_, size=size: size):
                seconds.append(timed(run.evaluator.predict, run.server.theta, judged))
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
    parser.add_argument("--ways", nargs="+", metavar="WAY", help="only these, beside the program as it is")
    args = parser.parse_args()
    ways = WAYS[torch.device(args.device).type]
    if unknown := set(args.ways or ()) - set(ways):
        parser.error(f"--ways {' '.join(sorted(unknown))}: there are {', '.join(ways)}")
    ways = {name: way for name, way in ways.items() if not args.ways or name in ("as it is", *args.ways)}
    print(f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads, {platform.machine()}\n")
    print("| work | setting | seconds a round | of that as it is | its range | models apart after a round |")
    print(f"|{'---|' * 6}")
    for work in args.works:
        compare(work, ways, args.rounds, args.device)
    print(f"\n| work | images of a batch | seconds to evaluate {EVALUATED:,} | of that as it is |\n|{'---|' * 4}")
    for work in args.works:
        evaluations(work, args.rounds, args.device)


if __name__ == "__main__":
    main()
