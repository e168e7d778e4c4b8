"""Networks that draw as they train: every draw is keyed; nothing hangs on what else was drawn, where, or when."""

import json
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import evaluate, train_round, train_rounds
from processes import environments
from torch import nn

from fedmerge.checkpoint.policy import CheckpointPolicy, Interrupted
from fedmerge.checkpoint.store import Checkpoints
from fedmerge.config.resolve import resolve
from fedmerge.errors import InputError
from fedmerge.local_training import client
from fedmerge.networks.draws import check_repeats, draws_at_random, keyed_draws
from fedmerge.networks.flat_model import FlatModel
from fedmerge.simulation import distributed
from fedmerge.simulation.experiment import prepare
from fedmerge.simulation.process_group import ProcessGroup
from fedmerge.simulation.run_state import RunState, resume

NETWORK = str(Path(__file__).with_name("dropping.py"))
SHORT = {"n_epochs": 2, "batch_size": 16, "local_steps": 3, "participation": 0.25, "lr": 0.05, "device": "cpu"}
FEW = {"local_steps": 1, "participation": 0.1}  # of a network that takes its time
CASES = [
    {"model_name": "dropping", "norm": "batch", "min_client_samples": 2},
    {"model_name": "dropping", "algorithm": "las", "localiser": "learned", "graft_epochs": 1},
    {"model_name": "dropping", "local": "soups", "n_verts": 2, "soup_epochs": 1, "probe_epochs": 1},
    {"model_name": "dropping", "local": "moon"},
    {"model_name": "mobilenet_v3_small", "min_client_samples": 2, "algorithm": "fedbn", **FEW},
]


@pytest.fixture(autouse=True)
def network(monkeypatch):
    monkeypatch.setenv("FEDMERGE_PLUGINS", NETWORK)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def settings_of(**settings):
    return resolve({**SHORT, "model_name": "dropping", **settings})


def train(settings, group=None):
    """Train two rounds; return the rows, times aside, the losses, and what tells the model, as plain values."""
    run, reached = prepare(settings_of(**settings), group), []
    for number in (1, 2):
        torch.rand(number)  # somebody else's draws
        train_rounds(run)
        reached.append(evaluate(run, run.splits.test[:50])[0])
    rows = [{k: v for k, v in row.items() if "seconds" not in k} for row in run.history.rows]
    return rows, reached, run.server.theta.double().sum().item(), run.server.theta[:1000].tolist()


@pytest.mark.slow
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
    train_rounds(prepare(settings_of()))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dropping", "mobilenet_v3_small"])
def test_the_network_really_draws_and_each_client_in_each_round_its_own(monkeypatch, name):
    seeds = []

    def noting(seed, device):
        seeds.append(seed)
        return keyed_draws(seed, device)

    run = prepare(settings_of(model_name=name, norm="none" if name == "dropping" else "group", local_steps=1))
    assert run.clients.trainer.draws
    assert run.clients.threads.n == 1
    monkeypatch.setattr(client, "keyed_draws", noting)
    train_rounds(run, 2)
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
    run = prepare(settings_of(model_name="cnn", parallel_clients=3))
    assert not run.clients.trainer.draws
    assert run.clients.threads.n == 3
    assert all("draws" in vars(trainer) for trainer in run.clients.threads.idle)  # no thread has to find it out


@pytest.mark.slow
@pytest.mark.parametrize("settings", [CASES[0], CASES[4]], ids=str)
def test_a_run_resumed_within_a_round_goes_on_as_if_it_had_not_ended(tmp_path, settings):
    whole = train_rounds(prepare(settings_of(**settings)), 2)

    class Stop(CheckpointPolicy):
        def after_client(self):
            self.save()
            raise Interrupted

        def due(self):
            return True

    saver = Stop(Checkpoints(tmp_path, "run"))
    cut = train_rounds(prepare(settings_of(**settings)))
    saver.run = RunState(cut)
    with pytest.raises(Interrupted):
        train_round(cut, saver=saver)
    again = prepare(settings_of(**settings))
    resume(again, saver.checkpoints)
    assert 0 < len(again.server.cohort.done) < len(again.server.cohort.ids)
    torch.rand(7)
    train_rounds(again)
    assert torch.equal(again.server.theta, whole.server.theta)


def in_a_group(path):
    """What one process of a group does: train all cases, and, if it is the first, write what they came to."""
    torch.set_num_threads(1)
    group, found = ProcessGroup.join(), []
    for case in CASES:
        if group.rank:
            distributed.worker_loop(group, partial(prepare, settings_of(**case), group))
        else:
            found.append(train(case, group))
            group.tell({"status": 0})
    if group.rank == 0:
        path.write_text(json.dumps(found))
    group.leave()


def test_any_number_of_processes_draws_the_same(tmp_path, spawn):
    n = 3
    each = [{**environment, "FEDMERGE_PLUGINS": NETWORK} for environment in environments(n)]
    group = [spawn(tmp_path / "found", function=in_a_group, environment=environment) for environment in each]
    for process in group:
        process.join(240)
    assert [process.exitcode for process in group] == [0] * n
    found = json.loads((tmp_path / "found").read_text())
    assert found == [json.loads(json.dumps(train(case))) for case in CASES]


def test_no_graph_is_recorded_of_a_network_that_draws():
    """Its recording would draw, for the client at which it happens to be made."""
    for name, captured in (("dropping", False), ("cnn", True)):
        trainer = prepare(settings_of(model_name=name)).clients.trainer
        trainer.settings = replace(trainer.settings, capture=True)
        assert trainer.client(0, 1).can_capture() == captured


def test_one_thread_draws_at_a_time():
    inside, drawn = threading.Event(), []

    def slowly():
        with keyed_draws(1):
            inside.set()
            time.sleep(0.2)  # long enough for the other, if it may
            drawn.append(torch.rand(3).tolist())

    thread = threading.Thread(target=slowly)
    thread.start()
    inside.wait()
    with keyed_draws(2):
        drawn.append(torch.rand(3).tolist())
    thread.join()
    assert drawn == [torch.rand(3, generator=torch.Generator().manual_seed(seed)).tolist() for seed in (1, 2)]


class Counting(nn.Module):
    """Forgets a little more in every pass: an attribute counts them."""

    def __init__(self):
        super().__init__()
        self.head, self.passes = nn.Linear(4, 3), 0

    def forward(self, x):
        self.passes += self.training
        return self.head(x) / (1 + self.passes)


class Averaging(nn.Module):
    """Keeps a mean of what it has seen, for evaluation, in an attribute."""

    def __init__(self):
        super().__init__()
        self.head, self.seen = nn.Linear(4, 3), 0.0

    def forward(self, x):
        if not self.training:
            return self.head(x - self.seen)
        self.seen = 0.9 * self.seen + 0.1 * x.mean(0)
        return self.head(x)


class Remembering(nn.Module):
    """Keeps its latest features, of which nothing hangs."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        self.features = x.relu()
        return self.head(self.features)


@pytest.mark.parametrize(
    ("module", "mode"),
    [
        (Counting(), "training"),
        (Averaging(), "evaluation"),
        (nn.Sequential(nn.BatchNorm1d(4, momentum=None), nn.Linear(4, 3)), "evaluation"),
        (nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)), None),
        (nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)), None),
        (Remembering(), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_network_keeps_outside_its_vector_is_found(module, mode):
    model, x = FlatModel(module), torch.arange(8.0).view(2, 4) ** 2
    before = model.vector.clone()
    with pytest.raises(InputError, match=f"in {mode} mode") if mode else nullcontext():
        check_repeats(model, x)
    assert torch.equal(model.vector, before)
    assert model.module.training
