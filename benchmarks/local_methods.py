"""Seconds a step of each local method against plain local training, the same number of steps each.

    python benchmarks/local_methods.py [--rounds 5] [--steps 12] [--models cnn resnet18] [--methods "LSS, 4 models"]

One client of synthetic 3x32x32 images trains in batches of 64: FedAvg's `steps` steps, and as many by each method, by
`steps` / 4 for each of 4 models where there is a pool. All take turns in one process; the ratio is that of the medians.
What a method does besides its steps (averaging, held-out losses, choosing) is in its time. "mask learning" is a pass of
LaS-FL's over the client's batches, by the batch.
"""

import argparse
import platform
import statistics
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fedmerge import datasets
from fedmerge.config.resolve import resolve
from fedmerge.simulation.experiment import assemble

BATCH, POOL = 64, 4
METHODS = {
    "FedAvg": {},
    "LSS, 4 models": {"local": "lss", "n_verts": POOL},
    "SWA": {"local": "swa"},
    "SWAD": {"local": "swad"},
    "Soups, 4 models": {"local": "soups", "n_verts": POOL},
    "MOON": {"local": "moon"},
    "mask learning": {},
}


def client_of(model, optimizer, settings, steps, device):
    """Return (Experiment, Client) of one client with `steps` batches of random images."""
    pool = {"local_steps": steps // POOL, "soup_epochs": 1} if "n_verts" in settings else {"local_steps": steps}
    settings = {"model_name": model, "local_optimizer": optimizer, "batch_size": BATCH, "device": device, **settings}
    args = resolve({"algorithm": "centralised", "augment": "none", **pool, **settings})
    g = torch.Generator().manual_seed(0)
    n = BATCH * steps * 10 // 8  # enough for the methods that hold out a tenth
    images = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, generator=g)
    train, half = datasets.Images(images, torch.randint(10, (n,), generator=g)), torch.full((3,), 0.5)
    splits = datasets.Splits(train, train[:100], train[:100], 10, half, half)
    run = assemble(args, splits, [torch.arange(n)], torch.device(device))
    run.clients.trainer.settings = replace(run.clients.trainer.settings, epochs=1)
    return run, run.clients.trainer.client(0, 1)


def seconds_a_step(name, steps, run, client):
    if name == "mask learning":
        steps = client.steps_of(1)
        mask = torch.ones(run.server.layout.n_trainable, dtype=torch.bool, device=run.device)
        work = partial(
            client.learn_mask,
            run.server.theta,
            1e-3 * run.server.theta,
            mask,
            epochs=1,
            lr=1.0,
            bias=5.0,
            l1_strength=0.0,
        )
    else:
        work = partial(client.train, run.server.theta)
    started = time.perf_counter()
    work().sum().item()  # waits for the device
    return (time.perf_counter() - started) / steps


def main():
    parser = argparse.ArgumentParser(description="Seconds a step of each local method against plain local training.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="a multiple of 4")
    parser.add_argument("--models", nargs="+", default=["cnn", "resnet18"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS)[1:], default=list(METHODS)[1:], metavar="METHOD")
    args = parser.parse_args()
    chosen = {name: settings for name, settings in METHODS.items() if name in ("FedAvg", *args.methods)}
    print(f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads, {platform.machine()}\n")
    print("| model | optimiser | method | ms a step | of FedAvg's | its range |\n|---|---|---|---|---|---|")
    for model in args.models:
        for optimizer in ("sgd", "adam"):
            clients = {n: client_of(model, optimizer, s, args.steps, args.device) for n, s in chosen.items()}
            times = {name: [] for name in clients}
            for _ in range(args.rounds + 1):  # the first warms up
                for name, pair in clients.items():
                    times[name].append(seconds_a_step(name, args.steps, *pair))
            for name, found in times.items():
                ratios = [a / b for a, b in zip(found[1:], times["FedAvg"][1:], strict=True)]
                median, plain = statistics.median(found[1:]), statistics.median(times["FedAvg"][1:])
                row = f"| {model} | {optimizer} | {name} | {1000 * median:.1f} | {median / plain:.2f} |"
                print(f"{row} {min(ratios):.2f} to {max(ratios):.2f} |", flush=True)


if __name__ == "__main__":
    main()
