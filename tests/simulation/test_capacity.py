"""Room for what clients keep is found, or missed, before the work and not in its third round."""

import pytest
import torch
from conftest import POOLS, component, put_algorithm, train_round, train_rounds

import fedalg
from fedmerge import memory
from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.errors import InputError
from fedmerge.registry import ALGORITHMS, COMPRESSORS, LOCAL_METHODS
from fedmerge.simulation import capacity

KEEPS = {"algorithm": "las", "preset": "compact", "n_clients": 10, "participation": 0.2}
CASES = [
    *({"algorithm": name} for name in sorted(ALGORITHMS)),
    *(component("local", name) for name in sorted(LOCAL_METHODS)),
    *({"compressor": name, "residual": "client", "value_bits": 8} for name in sorted(COMPRESSORS)),
    {**KEEPS, "residual_momentum": 0.5},
    {"algorithm": "apfl", "apfl_adaptive": True},
    {"downlink": "individual"},
]


@pytest.mark.slow
@pytest.mark.parametrize("settings", CASES, ids=str)
def test_what_clients_will_keep_is_known_beforehand(experiment, settings):
    again = settings.get("algorithm") == "fedala"  # which learns its mixtures when a client comes back
    everybody = {"n_clients": 10, "participation": 1.0} if again else {}
    run = experiment(**settings, **POOLS, **everybody, local_steps=1, norm="batch", min_client_samples=2)
    expected = capacity.numbers_kept(run.server, run.clients)
    train_rounds(run, 2 if again else 1)
    kept = {name: max(of.values(), default=0) // 4 for name, of in capacity.kept_now(run.clients).items()}
    if settings.get("downlink") == "individual":
        kept["copy of the model"] = run.server.downlink.copies[next(iter(run.server.traffic))].numel()
    assert kept == expected


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
    run = experiment(**KEEPS, n_epochs=100)
    need = 10 * 4 * run.model.layout.n_trainable
    capacity.check_room(run.server, run.clients, run.name)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(capacity, "WORTH_SAYING", need - 1)
    capacity.check_room(run.server, run.clients, run.name)
    assert "10 of them 7.2 MiB; up to 21.6 MiB on disk" in capsys.readouterr().err
    monkeypatch.setattr(capacity.shutil, "disk_usage", lambda folder: shutil_usage(3 * need - 1))
    with pytest.raises(InputError, match=r"another --checkpoint_dir"):
        capacity.check_room(run.server, run.clients, run.name)
    monkeypatch.setattr(memory, "free", lambda device: need - 1)
    with pytest.raises(InputError, match="MiB are free: fewer --n_clients"):
        capacity.check_room(run.server, run.clients, run.name)


class shutil_usage:
    def __init__(self, free):
        self.free = free


class Remembering(FedAvg):
    """Somebody's algorithm, which does not say how much its clients keep."""

    client_state = ("seen",)

    def client_update(self, delta, start, client):
        self.seen[client.id] = torch.zeros(1000)
        return super().client_update(delta, start, client)


def test_what_nobody_said_is_measured_after_the_first_round(experiment):
    run = experiment(n_clients=10, n_epochs=10, max_state_memory=39_999 / 2**30, quiet=True)
    put_algorithm(run, Remembering)
    capacity.check_room(run.server, run.clients, run.name)
    with pytest.raises(
        InputError, match=r"keeps 3.9 KiB between rounds \(seen\), 10 of them 39.1 KiB, and 39.1 KiB are allowed"
    ):
        fedalg.run_rounds(run, [fedalg.room_checker(run)])
    assert run.history.n_done == 1


def test_what_the_run_holds_already_is_not_missed_again(experiment, monkeypatch, tmp_path):
    """In memory, as clients that hold something need no more; on disk, as its own checkpoints make room."""
    run = experiment(n_clients=10, participation=1.0, n_epochs=10, quiet=True)
    put_algorithm(run, Remembering)
    train_round(run, 1)
    monkeypatch.setattr(memory, "free", lambda device: 0)
    capacity.check_what_is_kept(run.server, run.clients, run.name)
    with pytest.raises(InputError, match="KiB are free"):
        capacity._check(run.server, run.name, {"seen": 4001})
    monkeypatch.undo()
    run = experiment(**KEEPS, n_epochs=100, checkpoint_dir=str(tmp_path))
    need = 3 * 10 * 4 * run.model.layout.n_trainable
    monkeypatch.setattr(capacity.shutil, "disk_usage", lambda folder: shutil_usage(need - 1000))
    with pytest.raises(InputError, match="another --checkpoint_dir"):
        capacity.check_room(run.server, run.clients, run.name)
    (tmp_path / f"{run.name}.pt").write_bytes(bytes(1000))
    capacity.check_room(run.server, run.clients, run.name)


def test_a_control_group_limits_what_is_free(tmp_path, monkeypatch):
    for name, text in (("memory.max", str(2**20)), ("memory.current", str(2**18))):
        (tmp_path / name).write_text(text)
    group = [(tmp_path / "memory.max", tmp_path / "memory.current"), (tmp_path / "none", tmp_path / "none")]
    monkeypatch.setattr(memory, "GROUP_FILES", group)
    assert memory.free(torch.device("cpu")) == 2**20 - 2**18
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free(torch.device("cpu")) > 2**20
