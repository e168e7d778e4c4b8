"""One run over several processes: the same results with any number of them, to the last bit."""

import json
from functools import partial

import pytest
import torch
from conftest import POOLS, QUICK, train_rounds
from processes import TIMES, digest, environments

from fedmerge.config.resolve import resolve
from fedmerge.registry import ALGORITHMS, COMPRESSORS, LOCAL_METHODS, MERGING_RULES
from fedmerge.simulation.distributed import worker_loop
from fedmerge.simulation.experiment import prepare
from fedmerge.simulation.process_group import ProcessGroup

SMALL = {
    **QUICK,
    **POOLS,
    "device": "cpu",
    "local_steps": 2,
    "participation": 0.3,
    "dirichlet": 0.5,
    "min_client_samples": 2,
}
CASES = [
    *({"algorithm": name, "norm": "batch"} for name in sorted(set(ALGORITHMS) - {"centralised"})),
    *({"local": name} for name in sorted(LOCAL_METHODS)),
    *({"merge": name} for name in sorted(MERGING_RULES)),
    *({"compressor": name, "residual": "client", "value_bits": 8} for name in sorted(COMPRESSORS)),
    {"algorithm": "las", "preset": "compact", "server_momentum": 0.5, "residual_momentum": 0.5, "wire": "real"},
    {"algorithm": "las", "residual": "client", "participation": 0.1},  # two clients, fewer than ranks
    {"downlink": "individual", "down_sparsity": 0.1, "shared_init": False, "value_bits": 8},
    {"norm": "batch", "bn_every": 3, "eval_every": 3, "downlink": "individual", "wire": "real"},
    {"algorithm": "krum", "attack": "noise", "attackers": 0.3, "dropout": 0.3},
    {"lr": 1e30, "on_nan": "skip", "algorithm": "las", "residual": "client"},
    {"attack": "sign_flip", "attackers": 0.4, "attack_strength": 3e38, "on_nan": "skip", "local_steps": 6},
    {"parallel_clients": 2, "algorithm": "las"},
]


def train(case, group=None):
    """Train two rounds; return what can be known of the run as plain values."""
    run = train_rounds(prepare(resolve({**SMALL, **case}), group), 2)
    return {
        "rows": [{k: v for k, v in row.items() if k not in TIMES} for row in run.history.rows],
        "traffic": {str(client_id): counts for client_id, counts in run.server.traffic.items()},
        "theta": digest(run.server.theta),
        "served": digest(run.server.served()),
        "downlink": digest(run.server.downlink.model),
        "kept": {name: {str(n): digest(t) for n, t in sorted(of.items())} for name, of in run.clients.kept().items()},
    }


def all_cases(path):
    """What one process of a group does: train all cases, and, if it is the first, write what they came to."""
    torch.set_num_threads(1)
    group, found = ProcessGroup.join(), []
    for case in CASES:
        if group.rank:
            worker_loop(group, partial(prepare, resolve({**SMALL, **case}), group))
        else:
            found.append(train(case, group))
            group.tell({"status": 0})
    if group.rank == 0:
        path.write_text(json.dumps(found))
    group.leave()


@pytest.fixture(scope="module")
def alone():
    """What the cases come to in one process, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield [json.loads(json.dumps(train(case))) for case in CASES]
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=[2, 3])
def together(request, tmp_path_factory, spawn):
    """What they come to in so many."""
    path = tmp_path_factory.mktemp("ranks") / "found.json"
    group = [spawn(path, function=all_cases, environment=e) for e in environments(request.param)]
    for process in group:
        process.join(300)
    assert [process.exitcode for process in group] == [0] * request.param
    return json.loads(path.read_text())


@pytest.mark.parametrize("i", range(len(CASES)), ids=lambda i: str(CASES[i]))
def test_any_number_of_processes_makes_the_same_to_the_last_bit(alone, together, i):
    for what, expected in alone[i].items():
        assert repr(together[i][what]) == repr(expected), what  # as text, in which nan is nan


@pytest.mark.slow
def test_what_diverges_is_really_among_the_cases(alone):
    assert any(row["clients"] == 0 for found in alone for row in found["rows"])
    assert any(0 < row["clients"] < 6 for row in alone[-2]["rows"])  # of six, some
