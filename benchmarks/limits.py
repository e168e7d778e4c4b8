"""Seconds a round against what its network costs: the samples' forward and backward passes in large batches, and FLOPs.

    python benchmarks/limits.py [--works W1 W2 W3] [--rounds 5] [--device cuda]

For works of round_time.py. The practical peak is forward and backward of as many samples as a round has, with nothing
else, in the batches that take least: of 64, 128, ... up to what fits in memory (on a CPU, to 512), channels_last, and
on a GPU in bf16 and as a CUDA graph. The FLOPs of the same, as torch counts them, at the rate of large matrix products
in that precision, are the other limit. This program's rounds come in several settings; all take turns, round by round,
and a share is the limit's median over the round's.
"""

import argparse
import itertools
import platform
import statistics
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent))

from round_time import experiment, sample_clients, timed, train_round

LARGEST = 512  # batch on a CPU
PRODUCTS = {"cpu": (1024, 2048, 4096), "cuda": (4096, 8192, 16384)}  # rows and columns
PASSES = 5  # of a batch of each size, when the best is looked for; of each matrix product
SETTINGS = {
    "cpu": {"one client at a time": {"parallel_clients": 1}, "clients side by side": {"parallel_clients": "auto"}},
    "cuda": {
        "float32": {},
        "bf16": {"precision": "bf16"},
        "bf16, captured": {"precision": "bf16", "capture": True},
        "bf16, captured, 2 clients at once": {"precision": "bf16", "capture": True, "parallel_clients": 2},
        "bf16, captured, 4 clients at once": {"precision": "bf16", "capture": True, "parallel_clients": 4},
        "bf16, 4 clients at once": {"precision": "bf16", "parallel_clients": 4},
    },
}


class Passes:
    """Forward and backward of one batch of random images, over and over: as a CUDA graph where there are any."""

    def __init__(self, run, size):
        device = run.device
        self.size, self.module = size, run.model.module.train()
        self.x = torch.randn(size, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
        self.y = torch.randint(10, (size,), device=device)
        self.bf16, self.graph = device.type == "cuda", None
        if self.bf16:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self.once()
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.once()

    def once(self):
        with torch.autocast(self.x.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False):
            logits = self.module(self.x)
        F.cross_entropy(logits.float(), self.y).backward()

    def times(self, n):
        for _ in range(n):
            self.once() if self.graph is None else self.graph.replay()

    def seconds(self, samples):
        """Return the seconds that `samples` take: those of whole batches, by the sample."""
        n = -(-samples // self.size)
        return timed(self.times, n) * samples / (n * self.size)


def fastest(run):
    """Return the Passes of the batch size that takes least a sample."""
    found = []
    for size in (64 * 2**i for i in itertools.count()):
        if run.device.type == "cpu" and size > LARGEST:
            break
        try:
            passes = Passes(run, size)
            passes.times(1)
            found.append((passes.seconds(PASSES * size) / size, size))
        except RuntimeError:  # no memory, or more numbers than a kernel counts
            if not found:
                raise
            break
        finally:
            passes = None
            torch.cuda.empty_cache()
    return Passes(run, min(found)[1])


def flops(passes):
    """Return the floating-point operations of forward and backward, by the sample."""
    with FlopCounterMode(display=False) as counter:
        passes.once()
    return counter.get_total_flops() / passes.size


class Products:
    """Square matrix products of the size that is fastest by the operation: in bf16 on a GPU."""

    def __init__(self, device):
        self.device = device
        _, best = min((self.of(n), n) for n in PRODUCTS[device.type])
        self.of(best)

    def of(self, n):
        """Take matrices of n x n; return the seconds that an operation takes."""
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.a, self.out = (torch.randn(n, n, device=self.device, dtype=dtype) for _ in range(2))
        torch.mm(self.a, self.a, out=self.out)
        return self.seconds()

    def seconds(self):
        """Return the seconds that an operation takes."""
        return min(timed(torch.mm, self.a, self.a, out=self.out) for _ in range(PASSES)) / (2 * len(self.a) ** 3)


def compare(work, n_rounds, device):
    """Print the rows of a work."""
    exps = {name: experiment(work, device, **settings) for name, settings in SETTINGS[device.type].items()}
    run = next(iter(exps.values()))
    args = run.settings
    passes, products = fastest(run), Products(device)
    by_the_sample = flops(passes)
    times = {name: [] for name in [*exps, "peak", "FLOPs"]}
    for r in range(1, n_rounds + 2):  # the first warms up
        cohort = sample_clients(args.n_clients, args.participation, args.seed, r)
        samples = args.n_client_epochs * sum(len(run.clients.parts[c]) for c in cohort)
        for name, each in exps.items():
            times[name].append(timed(train_round, each, r))
        times["peak"].append(passes.seconds(samples))
        times["FLOPs"].append(products.seconds() * by_the_sample * samples)
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    print(f"| {work} | forward and backward in batches of {passes.size} | {medians['peak']:.3f} | | |")
    print(f"| {work} | FLOPs of the same by the rate of matrix products | {medians['FLOPs']:.3f} | | |")
    for name in exps:
        shares = [a / b for a, b in zip(times["peak"][1:], times[name][1:], strict=True)]
        share = medians["peak"] / medians[name]
        columns = f"{medians[name]:.3f} | {share:.2f} | {min(shares):.2f} to {max(shares):.2f} |"
        print(f"| {work} | {name} | {columns}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--works", nargs="+", default=["W1", "W2"], choices=["W1", "W2", "W3"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    print(f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads, {platform.machine()}\n")
    print("| work | what | seconds a round | share of the peak reached | its range |\n|---|---|---|---|---|")
    for work in args.works:
        compare(work, args.rounds, device)


if __name__ == "__main__":
    main()
