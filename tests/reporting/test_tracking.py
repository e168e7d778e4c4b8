"""What trackers are told: settings, rounds, figures; that a run goes on in its record; and that they can end none."""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import pytest
from conftest import QUICK

import fedalg
from fedmerge.config.resolve import resolve
from fedmerge.errors import InputError
from fedmerge.reporting import tracking

FEW = {"n_clients": 4, "participation": 0.5, "local_steps": 1, "device": "cpu", "quiet": True}


class Told:
    """A tracker that keeps what it is told."""

    made = []

    def __init__(self, folder, name, settings, n_done):
        self.name, self.settings, self.n_done, self.rows, self.final = name, settings, n_done, [], None
        self.made.append(self)

    def log(self, row, step):
        self.rows.append((step, row))

    def close(self, final):
        self.final = final


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """A function of settings -> those of a run that tells `Told`, with its outputs under tmp_path."""
    monkeypatch.setitem(tracking.TRACKERS, "tensorboard", Told)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin=name))
    Told.made = []
    return lambda **more: resolve(
        {**QUICK, **FEW, "out": str(tmp_path), "track": "tensorboard", "track_dir": str(tmp_path / "t"), **more}
    )


def test_settings_rounds_and_final_figures_are_told(settings):
    run = fedalg.main(settings(eval_every=2), say=lambda _: None)
    (told,) = Told.made
    assert (told.name, told.n_done) == (run.name, 0)
    assert told.settings["lr"] == 0.05
    assert "clip_norm" not in told.settings  # it is None
    assert [step for step, _ in told.rows] == [1, 2]
    for (_, row), expected in zip(told.rows, run.history.rows, strict=True):
        assert row == {name: value for name, value in expected.items() if value is not None}
    assert set(told.rows[1][1]) == set(fedalg.COLUMNS)
    assert told.final["accuracy"] == run.history.rows[-1]["test_accs"]


def test_a_run_that_goes_on_says_so(settings, monkeypatch):
    def ended(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fedalg.main(settings(checkpoint_every=1), callbacks=[ended], say=lambda _: None)
    first = Told.made[-1]
    assert first.final == {}  # closed, but not finished
    fedalg.main(settings(checkpoint_every=1), say=lambda _: None)
    second = Told.made[-1]
    assert second.name == first.name
    assert [step for step, _ in second.rows] == list(range(second.n_done + 1, 3))


@pytest.mark.parametrize("where", ["__init__", "log", "close"])
def test_whatever_fails_is_said_once_and_ends_no_run(settings, monkeypatch, capsys, where):
    def fail(*_):
        raise RuntimeError("no network")

    monkeypatch.setattr(Told, where, fail)
    run = fedalg.main(settings(), say=lambda _: None)
    assert run.history.n_done == 2
    said = "warning: --track tensorboard failed, and is left out from here on (no network)\n"
    assert capsys.readouterr().err.count(said) == 1
    assert len(Told.made) == (where != "__init__")
    assert not (where == "log" and Told.made[0].final)


def test_a_package_that_is_not_there_is_said_before_any_work(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="--track wandb: the package is not installed: pip install wandb"):
        resolve({"track": "wandb"})
    with pytest.raises(InputError, match="--track_dir has no effect without --track"):
        resolve({"track_dir": "x"}, {"track_dir"})


# --------------------------------------------------------------------------------------------------------------------
# Each tracker, by what its package is asked for


class Calls(ModuleType):
    """A module of which everything may be asked for, and which remembers what was."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*given, **named):
            self.calls.append((name, given, named))
            return self.answers.get(name, self)

        return call

    answers = {}


ROW, FINAL = {"test_accs": 0.5, "bytes_up": 10.0}, {"accuracy": 0.75}


def use(kind, folder, n_done=0):
    tracker = tracking.TRACKERS[kind](folder, "run", {"lr": 0.1}, n_done)
    tracker.log(ROW, 3)
    tracker.close(FINAL)


def test_wandb_has_one_run_of_a_name(tmp_path, monkeypatch):
    wandb = Calls("wandb")
    wandb.summary = {}
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    use("wandb", tmp_path)
    use("wandb", tmp_path, n_done=2)
    (first, log, finish), (again, *_) = wandb.calls[:3], wandb.calls[3:]
    assert first == again
    assert (first[2]["resume"], first[2]["config"], first[2]["name"]) == ("allow", {"lr": 0.1}, "run")
    assert log == ("log", (ROW,), {"step": 3})
    assert finish[0] == "finish"
    assert wandb.summary == {"final/accuracy": 0.75}


def test_trackio_has_one_run_of_a_name(tmp_path, monkeypatch):
    trackio = Calls("trackio")
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    use("trackio", tmp_path)
    begin, log, final, finish = trackio.calls
    assert begin[2] == {"project": "fedmerge", "name": "run", "config": {"lr": 0.1}, "resume": "allow"}
    assert (log, final) == (("log", (ROW,), {"step": 3}), ("log", ({"final/accuracy": 0.75},), {}))
    assert finish[0] == "finish"
    monkeypatch.delenv("TRACKIO_DIR")


@pytest.mark.parametrize("known", [False, True])
def test_mlflow_finds_the_run_that_goes_on(tmp_path, monkeypatch, known):
    client, run = Calls("client"), SimpleNamespace(info=SimpleNamespace(run_id="7"))
    client.answers = {"get_experiment_by_name": None, "create_experiment": "1", "create_run": run}
    client.answers["search_runs"] = [run] if known else []
    mlflow = Calls("mlflow")
    mlflow.answers = {"MlflowClient": client}
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    use("mlflow", tmp_path)
    names = [name for name, *_ in client.calls]
    begun = ["update_run"] if known else ["create_run", "log_param"]
    assert names[3:] == [*begun, "log_metric", "log_metric", "log_metric", "set_terminated"]
    assert client.calls[-1][1] == ("7", "FINISHED")


@pytest.mark.slow
def test_tensorboard_has_all_rounds_once_though_some_were_told_twice(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for n_done, steps in ((0, (1, 2, 3)), (2, (3, 4))):  # killed after the third, saved after the second
        tracker = tracking.TensorBoard(tmp_path, "run", {"lr": 0.1}, n_done)
        for step in steps:
            tracker.log({"test_accs": step / 10}, step)
        tracker.close(FINAL if n_done else {})
    events = reader.EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    told = [(event.step, round(event.value, 3)) for event in events.Scalars("test_accs")]
    assert told == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    assert events.Scalars("final/accuracy")[0].value == 0.75
    assert any("settings" in tag for tag in events.Tags()["tensors"])
