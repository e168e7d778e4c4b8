"""On a device that is not the CPU everything trains what it trains on the CPU, and sends the same bytes."""

import shutil

import pytest
import torch
from conftest import component, train_round
from device import NAME, build, load, operations
from few_digits import TINY, few_digits

from fedmerge.config.resolve import resolve
from fedmerge.local_training import optimizers
from fedmerge.registry import AXES, specs
from fedmerge.simulation.experiment import assemble

pytestmark = [pytest.mark.usefixtures("small_networks"), pytest.mark.slow]
COMPONENTS = [(axis, name) for axis in AXES for name in sorted(specs(axis)) if name not in ("none", "centralised")]
WIRE = [
    {"value_bits": bits, "downlink": downlink, "algorithm": algorithm}
    for bits in (32, 16, 8, 4, 2, 1)
    for downlink, algorithm in (("dense", "fedavg"), ("delta", "topk"), ("sparse", "las"), ("individual", "las"))
]
OTHERS = [
    {"algorithm": "las", "preset": "compact"},
    {"algorithm": "las", "preset": "pretrained", "pretrained": False},
    {"algorithm": "las", "localiser": "learned", "graft_epochs": 1},
    {"algorithm": "las", "mask_scope": "floor", "residual": "client"},
    {"algorithm": "fedbn"},
    {"local_optimizer": "adam"},
    {"momentum": 0.9, "weight_decay": 0.01, "clip_norm": 1.0},
    {"attack": "label_flip", "attackers": 0.3},
    {"trainable": "lora", "lora_rank": 2},
    {"head_init": "ridge", "head_bits": 8},
    {"wire": "formula", "algorithm": "las"},
    {"bn_every": 2, "eval_every": 2},
    {"drop_probability": 0.3},
]


@pytest.fixture(scope="session")
def library(request, tmp_path_factory):
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler (c++)")
    cache = getattr(request.config, "cache", None)
    return build(cache.mkdir("accelerator") if cache else tmp_path_factory.mktemp("accelerator"))


def two_rounds(settings, device):
    """Return the first model [dim] and the last, on the CPU, and the rows of two rounds on a torch.device, with what
    they reach.
    """
    run, rows = assemble(resolve({**TINY, "parallel_clients": 1, **settings}), *few_digits(), device), []
    first = run.server.theta.cpu().clone()
    for _ in range(2):
        row = train_round(run)
        columns, _ = run.evaluator.columns(run.server, run.clients.parts)
        run.history.add(row | columns)
        rows.append({name: value for name, value in (row | columns).items() if "seconds" not in name})
    assert run.server.theta.device.type == device.type
    return first, run.server.theta.cpu(), rows


def compare(library, many, path):
    """What a child process does: train all of these settings on both devices, and write what came of it."""
    torch.set_num_threads(1)
    optimizers.FUSED = ()  # what is fused on the CPU and on GPUs rounds otherwise
    there, found = load(library), []
    for settings in many:
        expected = two_rounds(settings, torch.device("cpu"))
        before = operations()
        found.append((two_rounds(settings, there), expected, operations() - before))
    torch.save(found, path)


def apart(model, expected, first):
    """Return how far two models [dim] are apart, in how far training from `first` took the expected one."""
    return ((model - expected).norm() / (expected - first).norm()).item()


def test_models_are_judged_by_the_way_that_they_went():
    first, *steps = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    expected = first + 1e-3 * steps[0]
    assert apart(first + 1.1e-3 * steps[0], expected, first) == pytest.approx(0.1, rel=0.05)
    assert apart(first, expected, first) == pytest.approx(1)  # what did not train


def ids(settings):
    return "-".join(map(str, settings.values()))


def refusals(library, path):
    """What a child process does: try what a GPU refuses, and write what was said."""
    there, said = load(library), []
    ours, theirs = torch.randn(5), torch.randn(5, device=there)
    attempts = (
        lambda: theirs + ours,
        lambda: theirs.lerp_(ours, 0.5),
        lambda: torch.dot(theirs, ours),
        lambda: theirs.normal_(generator=torch.Generator()),
        theirs.numpy,
    )
    for attempt in attempts:
        try:
            attempt()
            said.append("")
        except (RuntimeError, TypeError) as error:
            said.append(str(error).splitlines()[0])
    said.append((theirs + torch.tensor(1.0)).device.type)  # scalars may come from anywhere
    said.append(theirs[torch.tensor([0, 1])].device.type)  # and so may indices
    torch.save(said, path)


EVERYTHING = [component(*pair) for pair in COMPONENTS] + WIRE + OTHERS
PARTS = 8  # in so many processes: torch knows devices only from before it first trains


@pytest.mark.parametrize("part", range(PARTS))
def test_another_device_trains_what_the_cpu_trains(part, library, spawn, tmp_path):
    many = EVERYTHING[part::PARTS]
    process = spawn(library, many, tmp_path / "found", function=compare)
    process.join()
    assert process.exitcode == 0
    for settings, came in zip(many, torch.load(tmp_path / "found"), strict=True):
        (first, model, rows), (expected_first, expected_model, expected_rows), n = came
        assert n > 100, settings
        assert torch.equal(first, expected_first), settings
        assert torch.equal(model, expected_model), settings
        assert rows == expected_rows, settings


def test_the_other_device_refuses_what_a_gpu_refuses(library, spawn, tmp_path):
    process = spawn(library, tmp_path / "said", function=refusals)
    process.join()
    assert process.exitcode == 0
    *refused, with_scalar, by_index = torch.load(tmp_path / "said")
    assert all(refused), refused
    assert with_scalar == by_index == NAME


@pytest.mark.gpu
@pytest.mark.parametrize("settings", EVERYTHING, ids=ids)
def test_a_gpu_trains_what_the_cpu_trains(settings):
    first, expected_model, expected_rows = two_rounds(settings, torch.device("cpu"))
    _, model, rows = two_rounds(settings, torch.device("cuda"))
    assert apart(model, expected_model, first) < 0.3
    for row, expected in zip(rows, expected_rows, strict=True):
        for name in ("bytes_up", "bytes_down", "kept_share", "train_losses"):
            assert row[name] == pytest.approx(expected[name], rel=0.02), name
