"""Clients that train at once make what they make one after the other, to the last bit."""

import pytest
from conftest import POOLS, assert_alike, component, train_rounds

from fedmerge.registry import ALGORITHMS, COMPRESSORS, LOCAL_METHODS, MERGING_RULES

SHORT = {**POOLS, "batch_size": 32, "local_steps": 2, "participation": 0.25, "dirichlet": 0.5}
CASES = [
    *({"algorithm": name} for name in sorted(set(ALGORITHMS) - {"centralised"})),
    *(component("local", name) for name in sorted(LOCAL_METHODS)),
    *({"merge": name} for name in sorted(MERGING_RULES)),
    *({"compressor": name, "residual": "client", "value_bits": 8} for name in sorted(COMPRESSORS)),
    {"algorithm": "las", "preset": "compact", "wire": "real"},
    {"algorithm": "las", "localiser": "learned", "graft_epochs": 1},
    {"downlink": "individual", "down_sparsity": 0.1, "shared_init": False},
    {"attack": "noise", "attackers": 0.3, "dropout": 0.3},
]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread", "small_networks")
@pytest.mark.parametrize("settings", CASES, ids=str)
def test_clients_side_by_side_make_what_they_make_one_after_the_other(experiment, settings):
    settings = {**SHORT, **settings, "model_name": "small", "norm": "batch", "min_client_samples": 2}
    alone, beside = (train_rounds(experiment(**settings, parallel_clients=n), 2) for n in (1, 3))
    assert (alone.clients.threads.n, beside.clients.threads.n) == (1, 3)
    assert_alike(beside, alone)
