"""How the seconds of a round grow: with clients, rounds, weights and the clients of a round. Fits lines and draws them.

    python benchmarks/scaling.py [--repeats 5] [--device cpu] [--output benchmarks/scaling.png]

Clients have 50 synthetic 3x32x32 images each and train one epoch in batches of 10; where nothing else is said, ten of
100 do so a round, on a perceptron with one hidden layer of 128 units (0.4 million weights). Points are medians.
"""

import argparse
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import fedalg
from fedmerge import datasets
from fedmerge.config.resolve import resolve
from fedmerge.registry import use_plugins
from fedmerge.simulation.experiment import assemble

EACH = 50  # images a client


def experiment(device, n_clients=100, cohort=10, hidden=128):
    use_plugins([Path(__file__).with_name("perceptrons.py")])
    settings = {
        "model_name": f"perceptron{hidden}",
        "n_clients": n_clients,
        "participation": cohort / n_clients,
        "batch_size": 10,
    }
    args = resolve({"n_client_epochs": 1, "augment": "none", **settings})
    g, n = torch.Generator().manual_seed(0), n_clients * EACH
    images = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, generator=g)
    train, half = datasets.Images(images, torch.randint(10, (n,), generator=g)), torch.full((3,), 0.5)
    splits = datasets.Splits(train, train[:100], train[:100], 10, half, half)
    return assemble(args, splits, list(torch.arange(n).split(EACH)), torch.device(device))


def seconds(run, round):
    started = time.perf_counter()
    fedalg.train_round(run, round)
    run.server.theta.sum().item()  # waits for the device
    return time.perf_counter() - started


def measure(device, repeats, values, name):
    """Return the median seconds of a round for each of the values of `name`; they take turns."""
    exps = [experiment(device, **{name: value}) for value in values]
    times = [[seconds(run, round) for run in exps] for round in range(1, repeats + 2)]
    sizes = [run.server.layout.dim for run in exps]
    return sizes, [statistics.median(column) for column in zip(*times[1:], strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/scaling.png"))
    args = parser.parse_args()
    found = {}
    values = [20, 100, 250, 500, 1000]
    found["clients"] = values, measure(args.device, args.repeats, values, "n_clients")[1]
    values = [5, 10, 20, 40, 80]
    found["clients of a round"] = values, measure(args.device, args.repeats, values, "cohort")[1]
    sizes, times = measure(args.device, args.repeats, [64, 128, 256, 512, 1024], "hidden")
    found["million weights"] = [size / 1e6 for size in sizes], times
    run, total = experiment(args.device), []
    for round in range(1, 42):
        total.append((total[-1] if round > 2 else 0) + seconds(run, round))  # without the first, which warms up
    found["rounds"] = list(range(1, 41)), total[1:]
    print(f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads, {platform.machine()}\n")
    print("| seconds a round by | from, to | at the ends | line | R^2 |\n|---|---|---|---|---|")
    for name, (x, y) in found.items():
        slope, base = np.polyfit(x, y, 1)
        misses = np.array(y) - (slope * np.array(x) + base)
        r2 = 1 - (misses @ misses) / max(1e-30, ((np.array(y) - np.mean(y)) ** 2).sum())
        label = "seconds of all" if name == "rounds" else name
        ends = f"{x[0]:.3g}, {x[-1]:.3g} | {y[0]:.3f}, {y[-1]:.3f}"
        print(f"| {label} | {ends} | {base:.3f} + {slope:.5f} x | {r2:.3f} |")
    draw(found, args.output)


def draw(found, path):
    """Draw points and lines, a panel for each."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(4 * len(found), 3.2), layout="constrained")
    for axis, (name, (x, y)) in zip(axes, found.items(), strict=True):
        slope, base = np.polyfit(x, y, 1)
        axis.plot(x, y, "o", markersize=4)
        axis.plot([0, max(x)], [base, base + slope * max(x)], "-", linewidth=1)
        axis.set(xlabel=name, ylabel="seconds of all rounds" if name == "rounds" else "seconds a round")
        axis.set_ylim(0, 1.1 * max(y))
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
