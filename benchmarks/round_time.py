"""Seconds a round of fedalg's own loop against a bare PyTorch loop over the same batches, and peak memory.

    python benchmarks/round_time.py [--works W1 W2] [--rounds 7] [--device cpu]

Both loops run in one process and take turns, round by round, on the same clients, batches and starting weights; the
ratio is that of the medians. The bare loop is what one would write without this program: one module, torch.optim.SGD,
state_dicts averaged key by key, images normalised beforehand. Memory is the peak of a process of its own.

W1: 50,000 synthetic 3x32x32 images, 100 clients at Dirichlet 0.1, 10 a round, 1 epoch, batches of 32, the small CNN.
W2: 1,000 clients of 50 images, 50 a round, batches of 10.
W3, for a GPU: 20 clients, 4 a round, 5 epochs, batches of 64, ResNet-18.
W4: 10 clients at Dirichlet 0.5, all of them a round, 1 epoch, batches of 64, LeNet, as in --recipe niid_bench.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fedalg import train_round
from fedmerge import datasets, partitions
from fedmerge.config.resolve import resolve
from fedmerge.config.split_files import drawn_as
from fedmerge.randomness import generator
from fedmerge.simulation.experiment import assemble, build_module
from fedmerge.simulation.sampling import sample_clients

WORKS = {
    "W1": {"n_clients": 100, "participation": 0.1, "dirichlet": 0.1, "batch_size": 32},
    "W2": {"n_clients": 1000, "participation": 0.05, "dirichlet": "iid", "batch_size": 10},
    "W3": {"n_clients": 20, "participation": 0.2, "dirichlet": "iid", "model_name": "resnet18", "n_client_epochs": 5},
    "W4": {"n_clients": 10, "participation": 1.0, "dirichlet": 0.5, "model_name": "lenet", "batch_size": 64},
    "10 clients": {"n_clients": 10, "participation": 1.0, "dirichlet": "iid", "batch_size": 32},
    "1000 clients": {"n_clients": 1000, "participation": 0.01, "dirichlet": "iid", "batch_size": 32},
}


def synthetic(device):
    """Return data.Splits of 50,000 random images with 10 labels."""
    g = torch.Generator().manual_seed(0)
    images = torch.randint(256, (50_000, 3, 32, 32), dtype=torch.uint8, generator=g)
    train = datasets.Images(images, torch.randint(10, (50_000,), generator=g))
    half = torch.full((3,), 0.5)
    return datasets.Splits(train, train[:100], train[:100], 10, half, half).to(device)


def experiment(work, device, **settings):
    args = resolve({"model_name": "cnn", "n_client_epochs": 1, "augment": "none", **WORKS[work], **settings})
    splits = synthetic("cpu")
    parts = partitions.partition(splits.train.labels, args.n_clients, drawn_as(vars(args)), args.seed)
    return assemble(args, splits, parts, torch.device(device))


class BareLoop:
    """FedAvg written out in plain PyTorch, with none of this program's parts but its clients and batch orders."""

    def __init__(self, run):
        self.args, self.parts = run.settings, run.clients.parts
        self.module = build_module(run.settings, run.splits).to(run.device)
        self.x = ((run.splits.train.images / 255 - 0.5) / 0.5).contiguous()
        self.y = run.splits.train.labels
        self.state = {k: v.clone() for k, v in self.module.state_dict().items()}

    def round(self, number_of_round):
        args = self.args
        clients = sample_clients(args.n_clients, args.participation, args.seed, number_of_round)
        total, merged = sum(len(self.parts[c]) for c in clients), {}
        for c in clients:
            self.train(c, generator(args.seed, "batches", number_of_round, c))
            for key, value in self.module.state_dict().items():
                merged[key] = merged.get(key, 0) + value * (len(self.parts[c]) / total)
        self.state = merged

    def train(self, c, rng):
        self.module.load_state_dict(self.state)
        optimizer = torch.optim.SGD(self.module.parameters(), lr=self.args.lr, momentum=self.args.momentum)
        for _ in range(self.args.n_client_epochs):
            for x, y in self.batches(self.parts[c], rng):
                optimizer.zero_grad()
                loss = F.cross_entropy(self.module(x), y)
                loss.backward()
                optimizer.step()

    def batches(self, part, rng):
        order = part[torch.randperm(len(part), generator=rng)].to(self.y.device)
        for begin, end in datasets.batch_bounds(len(part), self.args.batch_size):
            chosen = order[begin:end]
            yield self.x[chosen], self.y[chosen]


class LoaderLoop(BareLoop):
    """The same with a torch DataLoader a client over a dataset in main memory, as tutorials have it."""

    def __init__(self, run):
        super().__init__(run)
        self.device = run.device
        self.dataset = TensorDataset(self.x.cpu(), self.y.cpu())

    def batches(self, part, rng):
        subset = Subset(self.dataset, part.tolist())
        for x, y in DataLoader(subset, self.args.batch_size, shuffle=True, generator=rng):
            yield x.to(self.device), y.to(self.device)


def timed(function, *arguments, **more):
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    function(*arguments, **more)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def compare(work, n_rounds, device):
    """Print a row: median seconds of both loops, their ratio and its range, how far apart a round leaves the models."""
    run = experiment(work, device)
    bare = BareLoop(run)
    ours, theirs = [], []
    for r in range(1, n_rounds + 2):  # the first warms up
        pair = [(ours, train_round, (run, r)), (theirs, bare.round, (r,))]
        for times, function, arguments in pair if r % 2 else pair[::-1]:
            times.append(timed(function, *arguments))
        if r == 1:
            flat = torch.cat([bare.state[name].flatten() for name in run.server.layout.names])
            apart = (
                (flat - run.server.theta[: len(flat)]).norm() / flat.norm()
            ).item()  # without BatchNorm's statistics
    ours, theirs = ours[1:], theirs[1:]
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    a, b = statistics.median(ours), statistics.median(theirs)
    print(
        f"| {work} | {a:.2f} | {b:.2f} | {a / b:.2f} | {min(ratios):.2f} to {max(ratios):.2f} | {apart:.0e} |",
        flush=True,
    )


def peak_memory(work, device):
    """Run two rounds of `work` in a process of its own; return its peak resident (or GPU) memory in MiB."""
    command = [sys.executable, __file__, "--memory_of", work, "--device", device]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure_memory(work, device):
    run = experiment(work, device)
    for r in (1, 2):
        train_round(run, r)
    gpu = run.device.type == "cuda"
    print(
        torch.cuda.max_memory_allocated() / 2**20 if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--works", nargs="+", default=["W1", "W2"], choices=["W1", "W2", "W3", "W4"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory_of", choices=WORKS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        return measure_memory(args.memory_of, args.device)
    print(f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads, {platform.machine()}\n")
    columns = ["work", "fedalg s/round", "bare loop s/round", "ratio", "its range", "models apart after a round"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for work in args.works:
        compare(work, args.rounds, args.device)
    peaks = {work: peak_memory(work, args.device) for work in ("10 clients", "1000 clients")}
    print("\npeak memory, 10 clients a round: " + ", ".join(f"{work} {mib:.0f} MiB" for work, mib in peaks.items()))


if __name__ == "__main__":
    main()
