"""Choosing and merging large updates against a plain copy of them, and how both grow.

    python benchmarks/merging.py [--rounds 5] [--device cpu]

Ten updates of a ResNet-50 with 10 classes (23.5 million weights) are reduced to the largest of them (LaS-FL's upload)
and stitched, or averaged (FedAvg), as a round does it: on a CPU each thread chooses for one client at a time. The copy
is of the same matrix, into memory that is there already, on all threads. All take turns, round by round; the ratio is
that of the medians.
"""

import argparse
import platform
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fedmerge import networks
from fedmerge.client_update import ClientUpdate
from fedmerge.config.resolve import resolve
from fedmerge.merging import Aggregate, Arrival
from fedmerge.simulation.server import Server

CLIENTS = 10
WORKS = {
    "FedAvg": ("fedavg", {}),
    "LaS-FL, 10 % of each layer": ("las", {"sparsity": 0.1}),
    "LaS-FL, 10 % of all": ("las", {"sparsity": 0.1, "mask_scope": "global"}),
    "LaS-FL, 1 % of all": ("las", {"sparsity": 0.01, "mask_scope": "global"}),
}


class Sender:
    """As much of a client as an upload asks for."""

    def __init__(self, client_id, scratch):
        self.id, self.round, self.scratch = client_id, 1, scratch


def merge(server, theta, deltas, rows, pool):
    """Return the model [dim] that the Server makes of deltas [clients, dim]; what is sent goes into `rows`."""

    def upload(client_id):
        return ClientUpdate(*server.compressor.compress(deltas[client_id], theta, Sender(client_id, rows[client_id])))

    sums, n = server.new_sums(), len(deltas)
    for update in pool.map(upload, range(n)) if pool else map(upload, range(n)):
        sums.add(update, 1)
    aggregate = Aggregate([Arrival(i, 1, 1, 1) for i in range(n)], sums.means(n, n))
    return server.algorithm.merge(theta, server.rule(aggregate), aggregate)


def seconds(device, function, *arguments):
    started = time.perf_counter()
    function(*arguments)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    layout = networks.FlatModel(networks.build_model("resnet50", 3, 32, 10, "batch", 0)).layout
    g = torch.Generator().manual_seed(0)
    deltas = torch.randn(CLIENTS, layout.dim, generator=g).mul_(1e-3).to(device)
    theta, rows, copy = deltas[0].clone(), torch.zeros_like(deltas), torch.zeros_like(deltas)
    n_threads, pool = torch.get_num_threads(), None
    if device.type == "cpu":
        pool = ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,))
    tasks = {"copy": (copy.copy_, deltas)}
    for name, (algorithm, settings) in WORKS.items():
        chosen = resolve({"algorithm": algorithm, "n_clients": CLIENTS, **settings})
        tasks[name] = (merge, Server(chosen, layout, theta, [1] * CLIENTS), theta, deltas, rows, pool)
    times = {name: [] for name in tasks}
    for _ in range(args.rounds + 1):  # the first warms up
        for name, task in tasks.items():
            torch.set_num_threads(n_threads if name == "copy" or pool is None else 1)  # as client_threads.py has it
            times[name].append(seconds(device, *task))
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    print(f"torch {torch.__version__}, {args.device}, {n_threads} threads, {platform.machine()}")
    print(f"{CLIENTS} updates of {layout.dim:,} weights, {args.rounds} rounds\n")
    print("| work | seconds | times a copy | its range |\n|---|---|---|---|")
    for name, values in times.items():
        ratios = [a / b for a, b in zip(values[1:], times["copy"][1:], strict=True)]
        ratio = medians[name] / medians["copy"]
        print(f"| {name} | {medians[name]:.3f} | {ratio:.1f} | {min(ratios):.1f} to {max(ratios):.1f} |")


if __name__ == "__main__":
    main()
