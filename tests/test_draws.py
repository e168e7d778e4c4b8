"""Networks that draw as they train: every draw is keyed; nothing hangs on what else was drawn, where, or when."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from test_ranks import environments
from torch import nn
from torchvision.ops import StochasticDepth

import fedalg
from fedmerge import networks
from fedmerge.checkpoint.policy import Interrupted, Keeper
from fedmerge.checkpoint.store import Checkpoints
from fedmerge.config.resolve import resolve
from fedmerge.networks.draws import draws_at_random, keyed_draws
from fedmerge.networks.flat_model import FlatModel
from fedmerge.simulation import distributed, evaluation, rounds
from fedmerge.simulation.process_group import Ranks
from fedmerge.simulation.run_state import resume

SHORT = {"model_name": "dropping", "n_epochs": 2, "batch_size": 16, "local_steps": 3, "participation": 0.25, "lr": 0.05}
CASES = [
    {"norm": "batch", "min_client_samples": 2},
    {"algorithm": "las", "localiser": "learned", "graft_epochs": 1},
    {"local": "soups", "n_verts": 2, "soup_epochs": 1, "probe_epochs": 1},
    {"local": "moon"},
]


class Residual(nn.Module):
    """Stochastic depth as a layer, dropout as a function: nothing that a search through the modules would find."""

    def __init__(self, width):
        super().__init__()
        self.inner, self.depth = nn.Linear(width, width), StochasticDepth(0.3, "row")

    def forward(self, x):
        return x + self.depth(nn.functional.dropout(self.inner(x).relu(), 0.4, self.training))


def dropping(channels, image_size, n_classes, norm):
    """A small network with both kinds of draws."""
    layer = nn.BatchNorm1d(32) if norm == "batch" else nn.Identity()
    inputs = nn.Linear(channels * image_size**2, 32)
    return nn.Sequential(nn.Flatten(), inputs, layer, Residual(32), nn.Linear(32, n_classes))


@pytest.fixture(autouse=True)
def network(monkeypatch):
    monkeypatch.setitem(networks.MODELS, "dropping", dropping)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(settings, group=None):
    """Train two rounds; return the rows, times aside, and the sum of the model, as plain values."""
    exp = fedalg.prepare(resolve({**SHORT, "device": "cpu", **settings}), group)
    for round in (1, 2):
        torch.rand(round)  # somebody else's draws
        row = rounds.train_round(exp, round)
        evaluation.evaluate_round(exp, row)
        exp.rows.append(row)
    rows = [{k: v for k, v in row.items() if "seconds" not in k} for row in exp.rows]
    return rows, exp.theta.tolist()


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_the_same_seed_makes_the_same_model_whatever_else_was_drawn(settings):
    torch.manual_seed(1)
    once = train(settings)
    torch.manual_seed(2)
    assert train({**settings, "parallel_clients": 3}) == once
    assert train({**settings, "seed": 1}) != once


def test_nobody_elses_draws_change():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    exp = fedalg.prepare(resolve({**SHORT, "device": "cpu"}))
    rounds.train_round(exp, 1)
    assert torch.equal(torch.rand(3), expected)


def test_the_network_really_draws_and_each_client_in_each_round_its_own(monkeypatch):
    seeds = []

    def noting(seed, device):
        seeds.append(seed)
        return keyed_draws(seed, device)

    exp = fedalg.prepare(resolve({**SHORT, "device": "cpu"}))
    assert exp.trainer.draws
    assert exp.workers.n == 1
    monkeypatch.setattr("local_training.keyed_draws", noting)
    for round in (1, 2):
        exp.rows.append(rounds.train_round(exp, round))
    assert len(set(seeds)) == len(seeds) == 10


def test_one_without_draws_is_told_apart_and_left_as_it_was():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Dropout(0.0))

        def forward(self, x):
            return self.layers(x)

    model, x = FlatModel(Plain()), torch.randn(2, 1, 8, 8)
    before = model.vector.clone()
    assert not draws_at_random(model, x)
    assert torch.equal(model.vector, before)
    exp = fedalg.prepare(resolve({**SHORT, "model_name": "cnn", "parallel_clients": 3, "device": "cpu"}))
    assert not exp.trainer.draws
    assert exp.workers.n == 3
    assert all("draws" in vars(trainer) for trainer in exp.workers.idle)  # no thread has to find it out


def test_a_run_resumed_within_a_round_goes_on_as_if_it_had_not_ended(tmp_path):
    settings = {**SHORT, "device": "cpu", "checkpoint_dir": str(tmp_path)}
    whole = fedalg.prepare(resolve(settings))
    for round in (1, 2):
        whole.rows.append(rounds.train_round(whole, round))
    kept = Checkpoints(tmp_path, "run")

    class Stop(Keeper):
        def after_client(self, exp):
            self.save(exp)
            raise Interrupted

        def due(self):
            return True

    cut = fedalg.prepare(resolve(settings))
    cut.rows.append(rounds.train_round(cut, 1))
    with pytest.raises(Interrupted):
        rounds.train_round(cut, 2, Stop(kept))
    again = fedalg.prepare(resolve(settings))
    resume(again, kept)
    assert 0 < len(again.cohort.done) < len(again.cohort.numbers)
    torch.rand(7)
    again.rows.append(rounds.train_round(again, 2))
    assert torch.equal(again.theta, whole.theta)


def in_a_group(path):
    """What one process of a group does: train all cases, and, if it is the first, write what they came to."""
    torch.set_num_threads(1)
    networks.MODELS["dropping"] = dropping
    group, found = Ranks.join(), []
    for case in CASES:
        if group.rank:
            prepare = partial(fedalg.prepare, resolve({**SHORT, "device": "cpu", **case}), group)
            distributed.serve(group, prepare)
        else:
            found.append(train(case, group))
            group.tell({"status": 0})
    if group.rank == 0:
        path.write_text(json.dumps(found))
    group.leave()


@pytest.mark.parametrize("n", [2, 3])
def test_any_number_of_processes_draws_the_same(tmp_path, spawn, n):
    group = [spawn(tmp_path / "found", function=in_a_group, environment=e) for e in environments(n)]
    for process in group:
        process.join(120)
    assert [process.exitcode for process in group] == [0] * n
    found = json.loads((tmp_path / "found").read_text())
    assert found == [json.loads(json.dumps(train(case))) for case in CASES]


def test_no_graph_is_recorded_of_a_network_that_draws():
    """Its recording would draw, for the client at which it happens to be made."""
    for name, captured in (("dropping", False), ("cnn", True)):
        exp = fedalg.prepare(resolve({**SHORT, "model_name": name, "device": "cpu"}))
        exp.trainer.settings = replace(exp.trainer.settings, capture=True)
        assert exp.trainer.client(0, 1).can_capture() == captured
