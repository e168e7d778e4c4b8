"""One run over several processes: the same results with any number of them, to the last bit."""

import json
from functools import partial

import torch
from conftest import POOLS, QUICK, component, train_rounds
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
    "model_name": "small",
    "local_steps": 2,
    "participation": 0.3,
    "dirichlet": 0.5,
    "min_client_samples": 2,
}
COMPONENTS = [
    *({"algorithm": name, "norm": "batch"} for name in sorted(set(ALGORITHMS) - {"centralised"})),
    *(component("local", name) for name in sorted(LOCAL_METHODS)),
    *({"merge": name} for name in sorted(MERGING_RULES)),
    *({"compressor": name, "residual": "client", "value_bits": 8} for name in sorted(COMPRESSORS)),
]
OTHERS = [
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


def train_all(cases, path):
    """What one process of a group does: train all cases, and, if it is the first, write what they came to."""
    torch.set_num_threads(1)
    group, found = ProcessGroup.join(), []
    for case in cases:
        if group.rank:
            worker_loop(group, partial(prepare, resolve({**SMALL, **case}), group))
        else:
            found.append(train(case, group))
            group.tell({"status": 0})
    if group.rank == 0:
        path.write_text(json.dumps(found))
    group.leave()


def together(n, cases, spawn, path):
    """What the cases come to in n processes."""
    group = [spawn(cases, path, function=train_all, environment=e) for e in environments(n)]
    for process in group:
        process.join(300)
    assert [process.exitcode for process in group] == [0] * n
    return json.loads(path.read_text())


def test_any_number_of_processes_makes_the_same_to_the_last_bit(tmp_path, spawn, one_thread, small_networks):
    """With three, the components are left out: whatever they do, processes share out, wait and sum up alike."""
    alone = [json.loads(json.dumps(train(case))) for case in COMPONENTS + OTHERS]
    two = together(2, COMPONENTS + OTHERS, spawn, tmp_path / "two.json")
    three = together(3, OTHERS, spawn, tmp_path / "three.json")
    apart = []
    for n, cases, found in ((2, COMPONENTS + OTHERS, two), (3, OTHERS, three)):
        for case, one, several in zip(cases, alone[-len(cases) :], found, strict=True):
            # as text, in which nan is nan
            apart += [(n, case, what) for what in one if repr(one[what]) != repr(several[what])]
    assert apart == []
    diverging = alone[-len(OTHERS) :]
    assert any(row["clients"] == 0 for found in diverging for row in found["rows"])
    assert any(0 < row["clients"] < 6 for row in diverging[-2]["rows"])  # of six, some
