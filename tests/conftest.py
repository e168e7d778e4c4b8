"""Shared by the tests: a toy layout, a tiny experiment on the digits, and running the program as a user would."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import processes
import pytest
import torch
from hypothesis import settings

import fedalg
from fedmerge import merging
from fedmerge.checkpoint.policy import CheckpointPolicy
from fedmerge.checkpoint.store import Checkpoints
from fedmerge.config.options import all_options
from fedmerge.config.resolve import resolve
from fedmerge.networks.flat_model import Layout
from fedmerge.registry import plugins_held, requirements, specs
from fedmerge.reporting import run_figures
from fedmerge.simulation.experiment import prepare
from fedmerge.simulation.run_state import RunState

settings.register_profile("no clock", deadline=None)  # a busy machine is no failure
settings.load_profile("no clock")

ROOT = Path(__file__).resolve().parent.parent
STARTERS = {
    "program",
    "spawn",
    "started",
    "small_disk",
    "launch",
    "slurm",
    "copy",
}  # fixtures that start processes or copy the program
LONGEST = {"test_processes.py", "test_server_state.py"}
QUICK = {"n_epochs": 2, "n_client_epochs": 1, "batch_size": 16, "lr": 0.05}
POOLS = {"n_verts": 2, "soup_epochs": 1}  # of local methods that train several models; no others have these settings


def pytest_collection_modifyitems(items):
    """Mark what starts processes as slow, as is what else takes seconds: `make test-quick` leaves it out. Skip what is
    marked `gpu` where there is none.

    What waits for minutes for SLURM, or for other processes, comes first: nothing is left to share out beside the last.
    """
    for item in items:
        if STARTERS & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
    items.sort(key=lambda item: not ("slurm" in item.fixturenames or item.path.name in LONGEST))


@pytest.fixture(autouse=True)
def plugins_of_its_own():
    """No test knows of the plugins of another."""
    with plugins_held():
        yield


@pytest.fixture(autouse=True)
def runs_without_figures(request, monkeypatch):
    """Runs draw figures only in tests that are marked `figures`: they take longer than two rounds on the digits."""
    if "figures" not in request.keywords:
        monkeypatch.setattr(run_figures, "plot_run", processes.no_figures)


@pytest.fixture
def layout():
    """Two "layers" of 3 and 2 weights and two buffers."""
    return Layout(names=("a", "b"), sizes=(3, 2), n_trainable=5, dim=7)


@pytest.fixture
def experiment(tmp_path):
    """A function of settings -> Experiment on the digits."""

    def make(**settings):
        args = resolve({**QUICK, "device": "cpu", "metrics_dir": str(tmp_path / "metrics"), **settings})
        return prepare(args)

    return make


@pytest.fixture(scope="module")
def small_networks():
    """Make the networks of small_networks.py known, here and in processes that are started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDMERGE_PLUGINS", str(ROOT / "tests" / "small_networks.py"))
        yield


@pytest.fixture(scope="module")
def one_thread():
    """torch on one thread, so that a client's sums are the same whatever else goes on."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def program(tmp_path, spawn):
    """A function of flags -> finished process of fedalg.py, its outputs under tmp_path.

    It is forked from one that has imported all, and draws no figures; with `fresh`, it is one as a user starts it.
    """

    def run(*flags, script="fedalg.py", fresh=False):
        folders = {"metrics_dir": "metrics", "plots_dir": "plots", "results_file": "results.csv"}
        where = [part for flag, path in folders.items() for part in (f"--{flag}", str(tmp_path / path))]
        words = [str(ROOT / script), *(where if script == "fedalg.py" else ()), *map(str, flags)]
        if fresh:
            return subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=tmp_path)
        return processes.finished(spawn, words, tmp_path)

    return run


@pytest.fixture(scope="session")
def spawn():
    """A function of what processes.go, or another function, takes -> a started process.

    It is quick to start, since all is imported already.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.warm"])
    first = context.Process(target=int)  # the server imports all that before it forks this one
    first.start()
    first.join()
    started = []

    def start(*what, function=processes.go, environment=()):
        known = {name: os.environ[name] for name in {"FEDMERGE_PLUGINS"} & set(os.environ)}
        everything = (function, what, {**known, **dict(environment)})
        process = context.Process(target=processes.call, args=everything)
        started.append(process)
        process.start()
        return process

    yield start
    for process in started:
        process.kill()


def component(axis, name):
    """Return {flag: value} that choose a component, and what it requires where that is not the default."""
    needs = {
        flag: able for flag, able in requirements(specs(axis)[name]).items() if all_options()[flag].default not in able
    }
    return {axis: name, **{flag: able[0] for flag, able in needs.items()}}


def train_round(run, round=None, saver=None):
    """Train the next round of an Experiment; return its row, without an evaluation.

    The row is not in run.history yet: see `train_rounds`. round: its number, where that does not follow from there.
    """
    return fedalg.train_round(run, round or run.history.n_done + 1, saver)


def train_rounds(run, n=1):
    """Train n rounds of an Experiment; their rows are in run.history. Returns the Experiment."""
    for _ in range(n):
        run.history.add(train_round(run))
    return run


def put_algorithm(run, cls, **options):
    """Let an Experiment go on with an algorithm of this class, which is on no shelf."""
    algorithm = run.server.algorithm = cls(run.server.layout, **options)
    algorithm.compressor = run.server.compressor
    run.server.statistics |= merging.find_statistics(algorithm.statistics, algorithm.uploads, algorithm)


def assert_alike(one, other):
    """Assert that two Experiments went through the same rounds, to the last bit."""
    for model in (lambda run: run.server.theta, lambda run: run.server.downlink.model, lambda run: run.server.served()):
        assert torch.equal(model(one), model(other))
    kept, others = one.clients.kept(), other.clients.kept()
    assert kept.keys() == others.keys()
    for name, of_client in kept.items():
        assert of_client.keys() == others[name].keys()
        assert all(torch.equal(value, others[name][client_id]) for client_id, value in of_client.items())
    assert one.server.traffic == other.server.traffic
    for row, expected in zip(one.history.rows, other.history.rows, strict=True):
        times = {"train_seconds", "eval_seconds"}
        assert {k: v for k, v in row.items() if k not in times} == {k: v for k, v in expected.items() if k not in times}


def evaluate(run, images):
    """Return what Evaluator.evaluate says of an Experiment's model on Images."""
    return run.evaluator.evaluate(run.server, run.clients.parts, images)


def keep_two_rounds(tmp_path, **settings):
    """Return the Checkpoints of a run of two rounds of `settings`, saved after each, and its Experiment."""
    folders = {f"{k}_dir": str(tmp_path / k) for k in ("metrics", "checkpoint")}
    run = prepare(resolve({**QUICK, "device": "cpu", **folders, **settings}))
    saver = CheckpointPolicy(Checkpoints(tmp_path / "checkpoint", run.name), every=1)
    saver.run = RunState(run)
    for _ in range(2):
        row = train_round(run)
        columns, run.history.judged = run.evaluator.columns(run.server, run.clients.parts)
        run.history.add(row | columns)
        saver.save()
    return saver.checkpoints, run


def flat_state(module):
    """The module's parameters, then its float buffers, as one vector: what FlatModel.vector holds."""
    buffers = [b for b in module.buffers() if b.is_floating_point()]
    return torch.cat([t.detach().flatten() for t in [*module.parameters(), *buffers]])


def keys(images):
    """The set of (label, pixels) of data.Images."""
    return {
        (label, image.numpy().tobytes()) for image, label in zip(images.images, images.labels.tolist(), strict=True)
    }
