"""Checkpoints of runs: what is in them goes on as if nothing had been, and what no run wrote is refused."""

import copy
import os
import random
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from conftest import QUICK, component, keep_two_rounds, train_round, train_rounds
from processes import TIMES

import fedalg
from fedmerge import partitions, provenance
from fedmerge.algorithms.las import LaSFL
from fedmerge.checkpoint.policy import CheckpointPolicy, Interrupted
from fedmerge.checkpoint.store import Checkpoints
from fedmerge.config.resolve import resolve
from fedmerge.errors import InputError
from fedmerge.registry import ALGORITHMS, COMPRESSORS, LOCAL_METHODS
from fedmerge.reporting import personal_models
from fedmerge.simulation import state_checks
from fedmerge.simulation.experiment import prepare
from fedmerge.simulation.run_state import RunState, resume


def saver_of(run, checkpoints):
    """Return a CheckpointPolicy of the Experiment."""
    saver = CheckpointPolicy(checkpoints)
    saver.run = RunState(run)
    return saver


def test_a_run_that_is_stopped_within_a_round_goes_on_with_the_next_client(experiment, tmp_path):
    whole, other = (experiment(algorithm="las", preset="compact", n_epochs=3) for _ in range(2))
    for run in (whole, other):
        run.history.add(train_round(run, 1))
    ids = []
    for _ in range(4):
        saver = saver_of(other, Checkpoints(tmp_path / "c", whole.name))
        saver.stop.number = signal.SIGTERM
        with pytest.raises(Interrupted, match=f"round 2, client {len(ids) + 1} of 4"):
            train_round(other, 2, saver)
        ids.append(other.server.cohort.done[-1].client_id)
        other = experiment(algorithm="las", preset="compact", n_epochs=3)
        assert resume(other, saver.checkpoints)
    assert ids == other.server.cohort.ids
    rows = [train_round(run, 2) for run in (whole, other)]
    assert {k: v for k, v in rows[0].items() if k not in TIMES} == {k: v for k, v in rows[1].items() if k not in TIMES}
    assert torch.equal(whole.server.theta, other.server.theta)
    assert torch.equal(whole.server.downlink.model, other.server.downlink.model)


# --------------------------------------------------------------------------------------------------------------------
# What is on the disk


@pytest.mark.slow
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, experiment, capsys):
    kept, _ = keep_two_rounds(tmp_path)
    content = kept.newest.read_bytes()
    place = random.Random(0)
    damages = [b"", content[:10], content[:-1], content + b"x", b"x" + content[1:]]
    for _ in range(10):
        i = place.randrange(len(content))
        damages.append(content[:i] + bytes([content[i] ^ 1 << place.randrange(8)]) + content[i + 1 :])
    for damaged in damages:
        kept.newest.write_bytes(damaged)
        fresh = experiment()
        assert resume(fresh, kept)
        assert fresh.history.n_done == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"warning: {kept.newest} is damaged (")
    kept.previous.write_bytes(damages[1])
    with pytest.raises(InputError, match="no checkpoint of this run is whole: --fresh"):
        resume(experiment(), kept)


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch exploded",))


def test_a_checkpoint_runs_no_code(tmp_path, experiment, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    kept, run = keep_two_rounds(tmp_path)
    kept.save({**RunState(run).state_dict(), "algorithm": Bomb()})
    assert resume(experiment(), kept)
    assert "is damaged" in capsys.readouterr().err
    assert not (tmp_path / "exploded").exists()


def put(*path):
    """A function of a state that puts the last of `path` where the others lead, or what it makes of what is there."""
    *way, last, value = path

    def change(state):
        for name in way:
            state = state[name]
        state[last] = value(state[last]) if callable(value) else value

    return change


def in_rows(**columns):
    return lambda state: [row.update(columns) for row in state["rows"]]


def in_cohort(**changes):
    """The state of a round under way of which no client has sent, changed."""
    fresh = {"sums": {}, "rows": None, "masks": None, "down": {}, "done": [], "seconds": 0.0}
    return lambda state: state.update(cohort=fresh | changes)


ONE = torch.zeros(())
SENT = {
    "client_id": 0,
    "n_samples": 1,
    "n_steps": 1,
    "bytes": 1,
    "seen": 1,
    "loss": ONE,
    "hits": ONE,
    "total": ONE,
    "kept": 1,
}
SENT["masked"] = True
ODD = {
    "theta of another size": put("theta", torch.zeros(3)),
    "theta of numbers that are none": put("theta", lambda t: t * torch.nan),
    "a sparse theta": put("theta", lambda t: t.to_sparse()),
    "an expanded theta": put("theta", lambda t: t[:1].expand(t.shape)),
    "theta of float64": put("theta", lambda t: t.double()),
    "no theta": lambda state: state.pop("theta"),
    "more than there is": put("evil", 1),
    "rows that are none": put("rows", 3),
    "rows without bytes": lambda state: [row.pop("bytes_up") for row in state["rows"]],
    "rows of text": put("rows", [{"epoch": "x"}] * 2),
    "rows twice": put("rows", lambda rows: rows * 2),
    "rows in another order": put("rows", lambda rows: rows[::-1]),
    "more rows than rounds": put("rows", lambda rows: [row | {"epoch": i} for i, row in enumerate(rows * 3, 1)]),
    "a foreign column": in_rows(evil="=cmd()"),
    "an accuracy of text": in_rows(val_accs="9"),
    "an accuracy that is none": in_rows(val_accs=float("nan")),
    "an accuracy above 1": in_rows(test_accs=1.5),
    "endless seconds": in_rows(train_seconds=float("inf")),
    "a count of 5,000 digits": in_rows(bytes_up=10**5000),
    "a loss of 5,000 digits": in_rows(val_losses=10**5000),
    "bytes below 0": in_rows(bytes_down=-1),
    "totals that do not add up": in_rows(bytes_up_total=7),
    "half an evaluation": lambda state: [row.pop("test_accs") for row in state["rows"]],
    "residuals of another size": lambda state: state["compressor"]["left"].update({0: torch.zeros(3)}),
    "residuals that are numbers": lambda state: state["compressor"]["left"].update({0: 5}),
    "residuals of nobody": lambda state: state["compressor"]["left"].update({"x": torch.zeros(3)}),
    "residuals of a client that there is not": put("compressor", "left", lambda d: d | {99: next(iter(d.values()))}),
    "no residuals": lambda state: state["compressor"].pop("left"),
    "no algorithm": put("algorithm", None),
    "no compressor": put("compressor", None),
    "residuals at the algorithm": lambda state: state["algorithm"].update(left=state["compressor"]["left"]),
    "a local method's of another": put("local", {"x": 1}),
    "an empty downlink": put("downlink", {}),
    "seen by one": put("downlink", "seen", [0]),
    "seen in words": put("downlink", "seen", lambda seen: ["a"] * len(seen)),
    "seen in the future": put("downlink", "seen", lambda seen: [10**6] * len(seen)),
    "seen before the start": put("downlink", "seen", lambda seen: [-5] * len(seen)),
    "a version beyond int32": put("downlink", "version", 2**31),
    "another version": put("downlink", "version", 1),
    "sizes below 0": put("downlink", "sizes", lambda sizes: [-(10**9)] * len(sizes)),
    "sizes of text": put("downlink", "sizes", lambda sizes: ["a"] * len(sizes)),
    "more sizes than rounds": put("downlink", "sizes", [1] * 9),
    "sizes beyond the whole model": put("downlink", "sizes", lambda sizes: [s * 10**6 for s in sizes]),
    "a model of another size": put("downlink", "model", torch.zeros(5)),
    "changes of another size": put("downlink", "changed_at", torch.zeros(5)),
    "changes in the future": put("downlink", "changed_at", lambda t: t + 9),
    "buffers of the future": put("downlink", "buffers_at", lambda version: version + 1),
    "messages that are none": put("downlink", "messages", {1: torch.zeros(9, dtype=torch.uint8)}),
    "traffic of text": put("traffic", {0: ["a", "b", "c"]}),
    "traffic of one number": put("traffic", {0: [1]}),
    "traffic of nobody": put("traffic", {"a": 1}),
    "no traffic": put("traffic", {}),
    "a cohort without anything": put("cohort", {}),
    "a cohort of one list": put("cohort", {"done": []}),
    "sums of another size": in_cohort(sums={"update": torch.zeros(2)}),
    "sums of another merge": in_cohort(sums={"sign": torch.zeros(2)}),
    "another client": in_cohort(done=[SENT] * 5, down={0: 1}),
    "all updates beside sums": in_cohort(rows=torch.zeros(0, 3)),
    "seconds that are none": in_cohort(seconds=float("nan")),
    "downloads of others": in_cohort(down={19: -1}),
    "no settings": put("settings", None),
    "settings in a list": put("settings", []),
    "a folder that is a number": put("settings", "metrics_dir", 5),
    "a tensor among the settings": put("settings", "lr", torch.zeros(3)),
    "a version in words": put("payload_version", "2"),
    "a split that is a number": put("split", 3),
    "a code that is a number": put("code", 3),
}


@pytest.fixture(scope="module")
def compact(tmp_path_factory, small_networks):
    """Settings, Checkpoints and their last state, of a run that has every kind of state; it is not written to."""
    settings = {"algorithm": "las", "preset": "compact", "n_epochs": 4, "n_clients": 6, "participation": 0.5}
    settings["model_name"] = "small"
    kept, run = keep_two_rounds(tmp_path_factory.mktemp("compact"), **settings)
    return settings, kept, RunState(run).state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ODD)
def test_a_checkpoint_of_odd_content_falls_back_and_leaves_nothing(tmp_path, compact, capsys, kind):
    settings, before, state = compact
    shutil.copytree(before.newest.parent, tmp_path / "c")
    kept, state = Checkpoints(tmp_path / "c", before.newest.stem), copy.deepcopy(state)
    ODD[kind](state)
    kept.save(state)
    run = prepare(resolve({**QUICK, "device": "cpu", **settings, "metrics_dir": state_dir(before)}))
    untouched = RunState(run).state_dict()
    assert resume(run, kept)
    assert len(run.history.rows) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {kept.newest} is damaged (")
    kept.save(state)
    shutil.copy(kept.newest, kept.previous)
    run = prepare(run.settings)
    with pytest.raises(InputError, match="no checkpoint of this run is whole"):
        resume(run, kept)
    assert same(RunState(run).state_dict(), untouched)


@pytest.mark.parametrize("change", [lambda state: None, in_cohort()], ids=["as it is", "a round under way"])
def test_what_is_made_odd_there_is_whole_without(tmp_path, compact, capsys, change):
    settings, before, state = compact
    kept, state = Checkpoints(tmp_path / "c", before.newest.stem), copy.deepcopy(state)
    change(state)
    kept.save(state)
    run = prepare(resolve({**QUICK, "device": "cpu", **settings, "metrics_dir": state_dir(before)}))
    assert resume(run, kept)
    assert (run.history.n_done, capsys.readouterr().err) == (2, "")


def state_dir(kept):
    return str(kept.newest.parent.parent / "metrics")


def same(a, b):
    """Whether two states are equal."""
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


def test_every_column_has_a_kind():
    known = state_checks.ALWAYS | state_checks.TRAINED | state_checks.EVALUATED | state_checks.VALIDATED
    assert sorted(known) == sorted(fedalg.COLUMNS)


FEW = {"n_clients": 4, "participation": 1, "local_steps": 1, "n_verts": 1, "soup_epochs": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        *({"algorithm": name} for name in sorted(set(ALGORITHMS) - {"centralised"})),
        *(component("local", name) for name in sorted(LOCAL_METHODS)),
        *({"compressor": name, "residual": "client", "value_bits": 8} for name in sorted(COMPRESSORS)),
        {"algorithm": "las", "residual": "server", "server_momentum": 0.5},
        {"algorithm": "las", "residual": "client", "residual_momentum": 0.5},
    ],
    ids=str,
)
def test_what_says_how_long_its_vectors_are_is_right(settings, experiment):
    run = train_rounds(experiment(**FEW, **settings))
    for keeps in run.clients.stateful:
        for kept, value in keeps.state_dict().items():
            for vector in value.values() if isinstance(value, dict) else [value]:
                assert keeps.kept_length(kept, run.model.layout) in (None, vector.numel())


def test_the_vectors_of_published_methods_have_a_known_length(experiment):
    known = {}
    for settings in (
        {"algorithm": "fedacg"},
        {"local": "moon"},
        {"algorithm": "fedbn"},
        {"algorithm": "ditto"},
        {"algorithm": "scaffold"},
    ):
        run = experiment(**settings)
        for keeps in run.clients.stateful:
            for name in (*keeps.server_state, *keeps.of_clients()):
                known[name] = keeps.kept_length(name, run.model.layout)
    assert set(known) == {"server_momentum", "last", "own_layers", "own_model", "control", "client_control"}
    assert None not in known.values()


def test_a_checkpoint_of_other_settings_is_refused_by_their_name(tmp_path, experiment):
    kept, _ = keep_two_rounds(tmp_path)
    with pytest.raises(InputError, match=r"of a run with lr = 0\.05, not 0\.1"):
        resume(experiment(lr=0.1), kept)
    split = tmp_path / "split.json"
    labels = experiment().splits.train.labels
    partitions.save_partition(split, labels, [torch.arange(i, 1294, 20) for i in range(20)], {})
    run = experiment(partition_file=str(split))
    run.settings.dirichlet = "iid"  # as if it had drawn it
    with pytest.raises(InputError, match="on another split"):
        resume(run, kept)
    with pytest.raises(InputError, match="a run with dirichlet = iid, not None"):
        resume(experiment(partition_file=str(split)), kept)


def test_a_folder_is_the_same_by_another_name(tmp_path, experiment):
    kept, run = keep_two_rounds(tmp_path)
    (tmp_path / "link").symlink_to(run.settings.metrics_dir)
    run.settings.metrics_dir = str(tmp_path / "link")
    assert resume(run, kept)


def test_a_checkpoint_of_other_data_is_refused(tmp_path, experiment):
    kept, _ = keep_two_rounds(tmp_path)
    run = experiment()
    run.splits = replace(run.splits, fingerprint="other")
    with pytest.raises(InputError, match="of a run on other files of DIGITS"):
        resume(run, kept)


def test_a_checkpoint_of_other_code_is_taken_with_a_warning(tmp_path, experiment, capsys, monkeypatch):
    kept, _ = keep_two_rounds(tmp_path)
    monkeypatch.setattr(provenance, "code_hash", lambda settings: "another")
    assert resume(experiment(), kept)
    assert "another version of the code" in capsys.readouterr().err


def test_a_signal_ends_a_run_that_saves_its_clients(experiment, tmp_path):
    kept, run = keep_two_rounds(tmp_path, save_clients=str(tmp_path / "clients"))
    saver = saver_of(run, kept)
    saver.stop.number = signal.SIGUSR1
    with pytest.raises(Interrupted, match="after round 2; the same"):
        personal_models.save_clients(run, saver)


@pytest.mark.parametrize(("name", "value"), [("wire", "real"), ("metrics_dir", "elsewhere")])
def test_a_checkpoint_of_another_wire_or_place_is_refused(tmp_path, experiment, name, value):
    kept, _ = keep_two_rounds(tmp_path)
    with pytest.raises(InputError, match=f"of a run with {name} = "):
        resume(experiment(**{name: value}), kept)


DIVERGED = [{"algorithm": name} for name in ("fedavg", "moon", "fedbn", "median", "scaffold")]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [*DIVERGED, {"algorithm": "las", "residual": "client"}], ids=str)
def test_a_checkpoint_with_a_client_that_has_just_diverged_is_whole(tmp_path, experiment, settings):
    """It is only forgotten when its round is merged."""
    settings = {**settings, "on_nan": "skip", "norm": "batch", "min_client_samples": 2, "local_steps": 2}
    runs, kept = [], Checkpoints(tmp_path / "c", "run")
    for stops in (False, True):
        run = experiment(**settings)
        diverging, train = run.server.participants(1)[0][1], run.server.algorithm.train

        def poisoned(received, client, train=train, diverging=diverging):
            return train(received * torch.nan if client.id == diverging else received, client)

        run.server.algorithm.train = poisoned
        if stops:
            with pytest.raises(Interrupted):
                train_round(run, 1, AfterClients(run, kept, 2))
            run = experiment(**settings)
            assert resume(run, kept)
            assert len(run.server.cohort.done) >= 2
        run.history.add(train_round(run, 1))
        runs.append(run)
    assert runs[0].history.rows[0]["clients"] == runs[1].history.rows[0]["clients"] == 3
    assert torch.equal(runs[0].server.theta, runs[1].server.theta)


class AfterClients(CheckpointPolicy):
    """Saves and stops when so many clients have sent."""

    def __init__(self, run, kept, n):
        super().__init__(kept)
        self.run, self.n = RunState(run), n

    def due(self):
        self.n -= 1
        return self.n <= 0

    def after_client(self):
        self.save()
        raise Interrupted


class OfMyOwn(LaSFL):
    """Somebody's, derived from one that says how long what it keeps is."""

    server_state = (*LaSFL.server_state, "count", "lowest", "even", "strided")
    client_state = ("seen",)

    def client_update(self, delta, start, client):
        self.seen[client.id] = torch.tensor([client.seen])
        return super().client_update(delta, start, client)

    def merge(self, theta, step, aggregate):
        self.count, self.even = (self.count or 0) + 1, not self.even
        self.lowest = torch.full((3,), torch.inf)
        self.strided = torch.arange(12.0).view(3, 4).t()
        return super().merge(theta, step, aggregate)


def test_what_an_algorithm_of_ones_own_keeps_is_taken_back(tmp_path, experiment):
    kept, runs = Checkpoints(tmp_path / "c", "run"), [experiment(), experiment()]
    for run in runs:
        run.server.algorithm = OfMyOwn(run.model.layout, server_momentum=0.5)
    train_rounds(runs[0])
    kept.save(RunState(runs[0]).state_dict())
    assert resume(runs[1], kept)
    mine, back = (run.server.algorithm for run in runs)
    assert (back.count, back.even) == (1, True)
    assert all(torch.equal(getattr(mine, name), getattr(back, name)) for name in ("lowest", "strided", "velocity"))
    assert len(back.seen) == 4
    assert back.seen == mine.seen
