"""Ways to train that this program does not take on a CPU, against the way it does: vmap over clients, torch.compile.

    python benchmarks/alternatives.py [--clients 8] [--repeats 15] [--device cpu]

A step of forward, backward and update for each of the clients, on random images; the ratio is that of medians, after
two steps to warm up. What compiling takes is told apart.
"""

import argparse
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, vmap

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fedmerge import networks

WORKS = {  # model, channels, pixels, batch
    "digits": ("cnn", 1, 8, 16),
    "W2": ("cnn", 3, 32, 10),
    "W1": ("cnn", 3, 32, 32),
    "ResNet-18, batch 16": ("resnet18", 3, 32, 16),
}


def timed(device, function, *arguments):
    started = time.perf_counter()
    function(*arguments)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def step(model, module, x, y):
    """Take a step on the flat vector, through `module`, the model's own or that compiled."""
    model.gradient.zero_()
    F.cross_entropy(module(x), y).backward()
    model.trainable.add_(model.gradient, alpha=-0.01)


def by_vmap(model):
    """Return a function (vectors [clients, dim], x [clients, B, ...], y [clients, B]) that takes all their steps."""

    def loss(vector, x, y):
        return F.cross_entropy(functional_call(model.module, model.tensors_of(vector), (x,)), y)

    gradients = vmap(grad(loss))
    return lambda vectors, x, y: vectors.add_(gradients(vectors, x, y), alpha=-0.01)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    device, n = torch.device(args.device), args.clients
    print(f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads, {platform.machine()}\n")
    print("| work | plain, ms a step | vmap's part of it | compiled's | s to compile |\n|---|---|---|---|---|")
    for name, (kind, channels, size, batch) in WORKS.items():
        norm = "none" if kind == "cnn" else "batch"
        model = networks.FlatModel(networks.build_model(kind, channels, size, 10, norm, 0), device)
        x = torch.randn(n, batch, channels, size, size, device=device)
        x = torch.stack([images.to(memory_format=torch.channels_last) for images in x])
        y = torch.randint(10, (n, batch), device=device)
        compiled = torch.compile(model.module)
        compiling = timed(device, step, model, compiled, x[0], y[0])
        ways = {
            "plain": lambda m=model, x=x, y=y: [step(m, m.module, *pair) for pair in zip(x, y, strict=True)],
            "compiled": lambda m=model, c=compiled, x=x, y=y: [step(m, c, *pair) for pair in zip(x, y, strict=True)],
        }
        if norm == "none":  # running statistics would have to be functions too
            vectors, all_steps = model.vector.repeat(n, 1), by_vmap(model)
            ways["vmap"] = lambda v=vectors, f=all_steps, x=x, y=y: f(v, x, y)
        times = {way: [] for way in ways}
        for _ in range(args.repeats + 2):
            for way, function in ways.items():
                times[way].append(timed(device, function))
        median = {way: statistics.median(found[2:]) for way, found in times.items()}
        share = {way: f"{seconds / median['plain']:.2f}" for way, seconds in median.items()}
        plain = 1000 * median["plain"] / n
        print(f"| {name} | {plain:.1f} | {share.get('vmap', '')} | {share['compiled']} | {compiling:.0f} |", flush=True)


if __name__ == "__main__":
    main()
