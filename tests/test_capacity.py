"""Room for what clients keep is found, or missed, before the work and not in its third round."""

import pytest
import torch

import fedalg
from fedmerge import memory
from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.errors import InputError
from fedmerge.registry import ALGORITHMS, LOCAL_METHODS
from fedmerge.simulation import capacity, rounds

KEEPS = {"algorithm": "las", "preset": "compact", "n_clients": 10, "participation": 0.2}
CASES = [
    *({"algorithm": name} for name in sorted(ALGORITHMS)),
    *({"local": name} for name in sorted(LOCAL_METHODS)),
    {**KEEPS, "residual_momentum": 0.5},
    {"downlink": "individual"},
]


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_what_clients_will_keep_is_known_beforehand(experiment, settings):
    pools = {"n_verts": 2, "soup_epochs": 1} if {"lss", "soups", "diwa"} & set(settings.values()) else {}
    exp = experiment(**settings, **pools, local_steps=1, norm="batch", min_client_samples=2)
    expected = capacity.numbers_kept(exp)
    rounds.train_round(exp, 1)
    held = {kind: max(of.values(), default=0) // 4 for kind, of in capacity.held_now(exp).items()}
    if settings.get("downlink") == "individual":
        held["copy of the model"] = exp.downlink.copies[next(iter(exp.traffic))].numel()
    assert held == expected


def test_more_than_is_allowed_is_refused_in_one_line(program, tmp_path):
    """10 clients at most in 3 rounds of 2; each with a residual of the cnn's 188,810 weights, 0.72 MiB."""
    flags = [word for name, value in KEEPS.items() for word in (f"--{name}", value)]
    done = program(*flags, "--n_epochs", 3, "--max_state_memory", 0.004)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "each client that takes part keeps 737.5 KiB between rounds (left), 6 of them 4.3 MiB" in done.stderr
    assert "4.1 MiB are allowed by --max_state_memory" in done.stderr
    assert not (tmp_path / "metrics").exists()
    assert program(*flags, "--n_epochs", 3, "--max_state_memory", 0.0043).returncode == 0  # 6 * 755,240 bytes


def test_by_default_what_is_free_is_the_limit_in_memory_and_on_disk(experiment, monkeypatch, capsys):
    exp = experiment(**KEEPS, n_epochs=100)
    need = 10 * 4 * exp.model.layout.n_trainable
    capacity.check_room(exp)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(capacity, "WORTH_SAYING", need - 1)
    capacity.check_room(exp)
    assert "10 of them 7.2 MiB; up to 21.6 MiB on disk" in capsys.readouterr().err
    monkeypatch.setattr(capacity.shutil, "disk_usage", lambda folder: shutil_usage(3 * need - 1))
    with pytest.raises(InputError, match=r"another --checkpoint_dir"):
        capacity.check_room(exp)
    monkeypatch.setattr(memory, "free", lambda device: need - 1)
    with pytest.raises(InputError, match="MiB are free: fewer --n_clients"):
        capacity.check_room(exp)


class shutil_usage:
    def __init__(self, free):
        self.free = free


class Remembering(FedAvg):
    """Somebody's algorithm, which does not say how much its clients keep."""

    def __init__(self, layout, **options):
        super().__init__(layout, **options)
        self.seen = {}

    def held(self):
        return {"seen": self.seen}

    def local_update(self, start, client):
        self.seen[client.number] = torch.zeros(1000)
        return super().local_update(start, client)


def test_what_nobody_said_is_measured_after_the_first_round(experiment):
    exp = experiment(n_clients=10, n_epochs=10, max_state_memory=39_999 / 2**30, quiet=True)
    exp.algorithm = Remembering(exp.model.layout)
    capacity.check_room(exp)
    with pytest.raises(
        InputError, match=r"keeps 3.9 KiB between rounds \(seen\), 10 of them 39.1 KiB, and 39.1 KiB are allowed"
    ):
        fedalg.run_rounds(exp, lambda row: None)
    assert len(exp.rows) == 0


def test_what_the_run_holds_already_is_not_missed_again(experiment, monkeypatch, tmp_path):
    """In memory, as clients that hold something need no more; on disk, as its own checkpoints make room."""
    exp = experiment(n_clients=10, participation=1.0, n_epochs=10, quiet=True)
    exp.algorithm = Remembering(exp.model.layout)
    rounds.train_round(exp, 1)
    monkeypatch.setattr(memory, "free", lambda device: 0)
    capacity.check_what_is_held(exp)
    with pytest.raises(InputError, match="KiB are free"):
        capacity._check(exp, {"seen": 4001})
    monkeypatch.undo()
    exp = experiment(**KEEPS, n_epochs=100, checkpoint_dir=str(tmp_path))
    need = 3 * 10 * 4 * exp.model.layout.n_trainable
    monkeypatch.setattr(capacity.shutil, "disk_usage", lambda folder: shutil_usage(need - 1000))
    with pytest.raises(InputError, match="another --checkpoint_dir"):
        capacity.check_room(exp)
    (tmp_path / f"{exp.name}.pt").write_bytes(bytes(1000))
    capacity.check_room(exp)


def test_a_control_group_limits_what_is_free(tmp_path, monkeypatch):
    for name, text in (("memory.max", str(2**20)), ("memory.current", str(2**18))):
        (tmp_path / name).write_text(text)
    group = [(tmp_path / "memory.max", tmp_path / "memory.current"), (tmp_path / "none", tmp_path / "none")]
    monkeypatch.setattr(memory, "GROUP_FILES", group)
    assert memory.free(torch.device("cpu")) == 2**20 - 2**18
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free(torch.device("cpu")) > 2**20
