"""What benchmarks compare with: a bare loop must train the models that a round of this program trains."""

import re
import sys

import pytest
import torch
from conftest import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import limits
import round_time

from fedmerge import datasets


def cut_down(monkeypatch, name):
    """Make the work `name` one of four clients with a batch of eight images, or two, and return the name."""
    small = {"n_clients": 4, "participation": 0.5, "dirichlet": "iid", "batch_size": 8, "n_client_epochs": 1}
    monkeypatch.setitem(round_time.WORKS, name, round_time.WORKS[name] | small)
    n, g = 64 if name == "W1" else 32, torch.Generator().manual_seed(0)
    images = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, generator=g)
    train, half = datasets.Images(images, torch.randint(10, (n,), generator=g)), torch.full((3,), 0.5)
    monkeypatch.setattr(round_time, "synthetic", lambda device: datasets.Splits(train, train, train, 10, half, half))
    return name


@pytest.fixture
def work(monkeypatch):
    return cut_down(monkeypatch, "W1")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["W1", "W3"])
def test_the_bare_loop_trains_the_same_model(name, capsys, monkeypatch):
    round_time.compare(cut_down(monkeypatch, name), 2, "cpu")
    *_, ratio, its_range, apart, _ = (column.strip() for column in capsys.readouterr().out.split("|"))
    assert float(apart) < 1e-5
    low, high = map(float, its_range.split(" to "))
    assert 0 < low <= float(ratio) <= high


def test_data_loaders_give_every_image_once(work):
    loop = round_time.LoaderLoop(round_time.experiment(work, "cpu"))
    batches = list(loop.batches(loop.parts[1], torch.Generator().manual_seed(3)))
    assert [len(y) for _, y in batches] == [8, 8]
    given = torch.cat([x for x, _ in batches]).flatten(1)
    own = loop.x[loop.parts[1]].flatten(1)
    assert sorted(map(tuple, given.tolist())) == sorted(map(tuple, own.tolist()))
    before = {name: tensor.clone() for name, tensor in loop.state.items()}
    loop.round(1)
    assert any(not torch.equal(before[name], tensor) for name, tensor in loop.state.items())


@pytest.mark.slow
def test_limits_are_of_the_samples_of_a_round(work, capsys, monkeypatch):
    monkeypatch.setattr(limits, "LARGEST", 64)
    monkeypatch.setitem(limits.PRODUCTS, "cpu", (64,))
    limits.compare(work, 1, torch.device("cpu"))
    peak, bound, *rounds = capsys.readouterr().out.splitlines()
    assert "batches of 64" in peak
    assert float(re.search(r"\| ([\d.]+) \| \| \|", bound)[1]) > 0
    for row in rounds:
        name, seconds, share = (column.strip() for column in row.split("|")[2:5])
        assert name in limits.SETTINGS["cpu"]
        assert float(share) == pytest.approx(float(peak.split("|")[3]) / float(seconds), abs=0.02)


def test_operations_are_counted_by_the_sample():
    passes = limits.Passes(round_time.experiment("W1", "cpu"), 4)
    # Multiplications and additions of the four layers, forward; twice that backward, but for the images' own gradient.
    layers = [2 * 32 * 32 * 32 * 75, 2 * 64 * 16 * 16 * 800, 2 * 4096 * 512, 2 * 512 * 10]
    assert limits.flops(passes) == 3 * sum(layers) - layers[0]
