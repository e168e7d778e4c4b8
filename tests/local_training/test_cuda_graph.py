"""Captured steps against steps as they come. Without a GPU, the same fixed tensors are used, and no graph."""

from dataclasses import replace

import pytest
import torch
from conftest import train_round

from fedmerge import datasets
from fedmerge.config.resolve import resolve
from fedmerge.local_training import cuda_graph
from fedmerge.simulation.experiment import assemble

pytestmark = pytest.mark.usefixtures("small_networks")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def experiment(device, **settings):
    """An Experiment on 90 random images of two clients, so that each has a last batch that is smaller."""
    g = torch.Generator().manual_seed(0)
    images = datasets.Images(torch.randint(256, (90, 3, 32, 32), dtype=torch.uint8, generator=g), torch.arange(90) % 10)
    splits = datasets.Splits(images, images, images, 10, torch.full((3,), 0.5), torch.full((3,), 0.25))
    settings = {"dataset": "CIFAR10", "model_name": "small", "n_clients": 2, "participation": 1.0, **settings}
    args = resolve({"n_client_epochs": 2, "batch_size": 16, "momentum": 0.5, **settings})
    return assemble(args, splits, [torch.arange(50), torch.arange(50, 90)], torch.device(device))


def capture(run):
    run.clients.trainer.settings = replace(run.clients.trainer.settings, capture=True)
    return run


CASES = [
    {},
    {"augment": "none", "weight_decay": 0.1, "norm": "batch"},
    {"lr_decay": 0.5, "precision": "bf16", "local_steps": 2},
    {"momentum": 0.0, "local_steps": 3},
    {"algorithm": "las", "sparsity": 0.1},
    {"algorithm": "swa"},
]


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("settings", CASES, ids=str)
def test_captured_steps_are_the_steps(device, settings, monkeypatch):
    plain, other = experiment(device, **settings), capture(experiment(device, **settings))
    counts, take = [], cuda_graph.CapturedStep.__call__
    monkeypatch.setattr(
        cuda_graph.CapturedStep,
        "__call__",
        lambda step, chosen, draws: counts.append(len(chosen)) or take(step, chosen, draws),
    )
    for round in (1, 2):
        rows = [train_round(run, round) for run in (plain, other)]
        for name in ("train_losses", "train_accs", "kept_share"):
            assert rows[1][name] == pytest.approx(rows[0][name], rel=1e-6 if device == "cpu" else 1e-2), name
        if device == "cpu":
            assert torch.equal(other.server.theta, plain.server.theta)
        else:
            assert torch.allclose(other.server.theta, plain.server.theta, atol=1e-3)
    assert 16 in counts
    assert "local_steps" in settings or {2, 8} <= set(counts)  # the last batches too


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        *({"algorithm": "fedprox"}, {"clip_norm": 1.0}, {"local_optimizer": "adam"}, {"algorithm": "moon"}),
        *({"local": name, "n_verts": 2, "soup_epochs": 1} for name in ("lss", "lss_published", "soups")),
        {"attack": "label_flip", "attackers": 0.49},
    ],
    ids=str,
)
def test_what_cannot_be_captured_is_done_as_it_comes(settings, monkeypatch):
    plain, other = experiment("cpu", **settings), capture(experiment("cpu", **settings))
    if "attack" not in settings:
        monkeypatch.setattr(cuda_graph, "CapturedStep", None)
    for run in (plain, other):
        train_round(run, 1)
    assert torch.equal(other.server.theta, plain.server.theta)


def test_a_result_is_not_the_next_ones_memory():
    trainer = capture(experiment("cpu", augment="none")).clients.trainer
    step = cuda_graph.CapturedStep(trainer, trainer.settings)
    step.begin()
    first = step(torch.arange(16), None)
    kept = [tensor.clone() for tensor in first]
    step(torch.arange(16, 32), None)
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


def test_capture_needs_a_gpu(program):
    done = program("--capture", "--device", "cpu")
    assert done.returncode == 2
    assert done.stderr == (
        "fedalg.py: error: --capture replays CUDA graphs, and there is no CUDA device here: leave it out\n"
    )
