"""Bytes are those of messages that exist, and are counted alike for every component."""

import pytest
import torch
from conftest import train_round

import fedalg
from fedmerge import wire
from fedmerge.registry import ALGORITHMS, COMPRESSORS


def test_las_sends_the_share_it_says_and_its_bytes(experiment, monkeypatch):
    sent, transmit = [], wire.transmit
    monkeypatch.setattr(wire, "transmit", lambda message, real: sent.append(message) or transmit(message, real))
    run = experiment(algorithm="las", sparsity=0.1, shared_init=False)
    row = train_round(run, 1)
    layout = run.model.layout
    kept = sum(max(1, round(0.1 * size)) for size in layout.sizes)
    assert row["kept_share"] == pytest.approx(kept / layout.n_trainable)
    up = [m for m in sent if m.client >= 0]
    assert [(len(m.positions), m.round, m.client) for m in up] == [(kept, 1, n) for n in run.server.traffic]
    assert row["bytes_up"] == sum(len(wire.encode(m)) for m in up)
    assert row["bytes_down"] == 4 * (32 + 4 * layout.dim)


LOCAL = {name for name, cls in ALGORITHMS.items() if "local" in cls.defaults}  # FedAvg on the wire
WIRES = [
    *({"algorithm": name} for name in sorted(set(ALGORITHMS) - {"centralised", *LOCAL})),
    *({"compressor": name, "residual": "client", "value_bits": 8} for name in sorted(COMPRESSORS)),
    {"algorithm": "las", "value_bits": 4, "downlink": "sparse", "residual": "client", "shared_init": False},
    {"algorithm": "fedavg", "value_bits": 8, "downlink": "dense", "shared_init": False},
    {"algorithm": "las", "value_bits": 4, "downlink": "individual", "down_sparsity": 0.1, "down_bits": 1},
    {"algorithm": "fedacg", "value_bits": 16, "downlink": "sparse", "down_sparsity": 0.3},
]


@pytest.mark.usefixtures("small_networks")
@pytest.mark.slow
@pytest.mark.parametrize("settings", WIRES, ids=lambda settings: "-".join(map(str, settings.values())))
def test_real_bytes_change_nothing_but_the_time(experiment, settings):
    """Every upload and download is written and read, and every client's copy compared, in rounds that clients skip."""
    runs = []
    for way in ("size", "real"):
        few = {"model_name": "small", "min_client_samples": 2, "n_epochs": 7, "local_steps": 2, "quiet": True}
        run = experiment(norm="batch", wire=way, **few, **settings)
        fedalg.run_rounds(run)
        rows = [{k: v for k, v in row.items() if "seconds" not in k} for row in run.history.rows]
        runs.append((run.server.theta, rows, run.server.traffic))
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1:] == runs[1][1:]
    assert len({number for number, (rounds, *_) in run.server.traffic.items() if rounds > 1}) > 3


@pytest.mark.usefixtures("small_networks")
@pytest.mark.parametrize("algorithm", sorted(set(ALGORITHMS) - {"centralised", "ssfl"}))  # it is counted before round 1
def test_the_initial_model_is_free_or_counted_for_every_algorithm_alike(experiment, algorithm):
    ways = ({}, {"shared_init": False})
    made = (experiment(model_name="small", algorithm=algorithm, **way) for way in ways)
    free, counted = (run.server.downlink for run in made)
    assert free.download(0)[0] == 0
    assert counted.download(0)[0] == wire.dense_bytes(len(counted.model))


def test_no_preset_and_no_algorithm_has_a_convention_of_counting_of_its_own():
    """Or two series of one figure would count differently. What an algorithm sends is its own, what is free is not."""
    for cls in ALGORITHMS.values():
        for settings in (cls.defaults, *cls.presets.values()):
            assert not {"shared_init", "wire"} & set(settings)


@pytest.mark.parametrize("settings", [{"algorithm": "las"}, {"algorithm": "las", "preset": "compact"}], ids=str)
def test_sparse_messages_have_deterministic_kernels(experiment, settings):
    try:
        run = experiment(deterministic=True, **settings)
        for round in (1, 2):
            train_round(run, round)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.slow
def test_variances_that_vanish_stay_finite_in_few_bits(experiment):
    """Weight decay shuts channels down; their variances fall towards 0 from one round to the next."""
    settings = {"norm": "batch", "min_client_samples": 2, "weight_decay": 2.0, "lr": 0.02, "n_epochs": 4, "quiet": True}
    for way in ({"value_bits": 4}, {"downlink": "sparse", "down_bits": 8, "down_sparsity": 1.0}):
        run = experiment(n_client_epochs=2, local_steps=60, n_clients=2, participation=1.0, **{**settings, **way})
        fedalg.run_rounds(run)
        assert torch.isfinite(run.server.served()).all()
