"""Shared by the tests: a toy layout, a tiny experiment on the digits, and running the program as a user would."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

import processes
import pytest
import torch
from hypothesis import settings

import fedalg
from fedmerge import merging
from fedmerge.client_update import Update
from fedmerge.config.resolve import resolve
from fedmerge.networks.flat_model import Layout

settings.register_profile("no clock", deadline=None)  # a busy machine is no failure
settings.load_profile("no clock")

ROOT = Path(__file__).resolve().parent.parent
QUICK = {"n_epochs": 2, "n_client_epochs": 1, "batch_size": 16, "lr": 0.05}


@pytest.fixture
def layout():
    """Two "layers" of 3 and 2 weights and two buffers."""
    return Layout(names=("a", "b"), sizes=(3, 2), n_trainable=5, dim=7)


@pytest.fixture
def experiment(tmp_path):
    """A function of settings -> Experiment on the digits."""

    def make(**settings):
        args = resolve({**QUICK, "device": "cpu", "metrics_dir": str(tmp_path / "metrics"), **settings})
        return fedalg.prepare(args)

    return make


@pytest.fixture
def program(tmp_path):
    """A function of flags -> finished process of fedalg.py, its outputs under tmp_path."""

    def run(*flags, script="fedalg.py"):
        folders = {"metrics_dir": "metrics", "plots_dir": "plots", "results_file": "results.csv"}
        where = [part for flag, path in folders.items() for part in (f"--{flag}", str(tmp_path / path))]
        command = [sys.executable, str(ROOT / script), *(where if script == "fedalg.py" else ()), *map(str, flags)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    return run


@pytest.fixture(scope="session")
def spawn():
    """A function of what processes.go, or another function, takes -> a started process.

    It is quick to start, since all is imported already.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fedalg", "plotting"])
    first = context.Process(target=int)  # the server imports all that before it forks this one
    first.start()
    first.join()
    started = []

    def start(*what, function=processes.go, environment=()):
        started.append(context.Process(target=processes.call, args=(function, what, dict(environment))))
        started[-1].start()
        return started[-1]

    yield start
    for process in started:
        process.kill()


def merge(algorithm, theta, deltas, masks, weights):
    """Return the algorithm's next model of deltas [clients, dim], masks [clients, n_trainable] or None, and weights."""
    if not algorithm.means:
        return algorithm.merge(theta, merging.all_of(deltas, masks, weights))
    sums = merging.Sums(algorithm.means, algorithm.layout)
    for i, weight in enumerate(weights.tolist()):
        sums.add(Update(deltas[i], None if masks is None else masks[i]), weight)
    return algorithm.merge(theta, merging.Arrived(sums.means(sum(weights.tolist()))))


def flat_state(module):
    """The module's parameters, then its float buffers, as one vector: what FlatModel.vector holds."""
    buffers = [b for b in module.buffers() if b.is_floating_point()]
    return torch.cat([t.detach().flatten() for t in [*module.parameters(), *buffers]])


def keys(images):
    """The set of (label, pixels) of data.Images."""
    return {
        (label, image.numpy().tobytes()) for image, label in zip(images.images, images.labels.tolist(), strict=True)
    }
