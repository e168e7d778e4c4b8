"""What the server keeps between rounds is the same in every process before clients train; nothing is kept elsewhere."""

import json

import pytest
import torch
from conftest import POOLS, QUICK, component, put_algorithm, train_round, train_rounds
from processes import digest, environments

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.client_update import ClientUpdate
from fedmerge.config.resolve import resolve
from fedmerge.errors import InputError
from fedmerge.registry import ALGORITHMS, LOCAL_METHODS
from fedmerge.simulation.client_pool import ClientPool
from fedmerge.simulation.distributed import worker_loop
from fedmerge.simulation.experiment import prepare
from fedmerge.simulation.process_group import ProcessGroup

ROUNDS = 3
SMALL = {
    **{**QUICK, **POOLS, "device": "cpu", "model_name": "small", "norm": "none"},
    **{"local_steps": 2, "participation": 0.3, "dirichlet": 0.5},
}


class Controlled(FedAvg):
    """Clients start a step further along the server's last step, which they read as they train."""

    server_state = ("control", "told")  # [n_trainable], and a plain value

    def client_start(self, received, client):
        if self.control is None:
            return received
        start = received.clone()
        start[: self.layout.n_trainable] += 0.5 * self.told * self.control
        return start

    def merge(self, theta, step, aggregate):
        self.control, self.told = step[: self.layout.n_trainable].clone(), (self.told or 0.0) + 0.1
        return super().merge(theta, step, aggregate)


class Keeping(FedAvg):
    """Clients keep tensors of several kinds and shapes, and change them by what they train."""

    client_state = ("signs", "table", "steps", "scalar")

    def client_update(self, delta, start, client):
        before = self.steps.get(client.id, torch.zeros(3, dtype=torch.int64))
        self.signs[client.id] = delta[:64] > 0
        self.table[client.id] = delta[:200].double().view(2, 100)
        self.steps[client.id] = before + client.seen
        self.scalar[client.id] = delta.sum()
        return super().client_update(delta, start, client)


class Weightless(FedAvg):
    """Every third client has no weight in the mean, but has a part in what counts all alike."""

    uploads = statistics = ("one",)
    server_state = ("seen",)

    def client_update(self, delta, start, client):
        return ClientUpdate(delta, one=torch.full_like(delta[: self.layout.n_trainable], 1.0 + client.id))

    def client_weight(self, result, weight):
        return weight * (result.client_id % 3 > 0)

    def merge(self, theta, step, aggregate):
        self.seen = aggregate.mean["one"][:4].clone()
        step[: self.layout.n_trainable] += 1e-3 * aggregate.mean["one"]
        return super().merge(theta, step, aggregate)


CASES = {
    **{name: {"algorithm": name} for name in sorted(set(ALGORITHMS) - {"centralised"})},
    **{f"local {name}": component("local", name) for name in sorted(LOCAL_METHODS)},
    "las that keeps": {"algorithm": "las", "server_momentum": 0.5, "residual": "server"},
    "Controlled": {},
    "Keeping": {},
    "Weightless": {},
}


def prepare_case(name, group=None):
    run = prepare(resolve({**SMALL, **CASES[name]}), group)
    cls = {"Controlled": Controlled, "Keeping": Keeping, "Weightless": Weightless}.get(name)
    if cls:
        put_algorithm(run, cls)
    return run


def known(clients):
    """What this process knows of what the server keeps, as plain values."""
    values = [(name, getattr(keeps, name)) for keeps in clients.stateful for name in keeps.server_state]
    return [[name, digest(v) if torch.is_tensor(v) else v] for name, v in values]


def sorted_state(run):
    """What clients keep, as plain values in one order."""
    kept = run.clients.kept().items()
    return [(name, n, str(t.dtype), t.tolist()) for name, of in kept for n, t in sorted(of.items())]


def follow(path):
    """What one process of a group does: train all cases; write what it knows as each round begins, and the models."""
    torch.set_num_threads(1)
    group, found, train = ProcessGroup.join(), [], ClientPool.train

    def noting(clients, *what):
        found.append(known(clients))
        return train(clients, *what)

    ClientPool.train = noting
    for name in CASES:
        if group.rank:
            worker_loop(group, lambda name=name: prepare_case(name, group))
        else:
            run = train_rounds(prepare_case(name, group), ROUNDS)
            found.append(digest(run.server.theta))
            if name == "Keeping":
                found[-1] += repr(sorted_state(run))
            group.tell({"status": 0})
    path.with_suffix(f".{group.rank}").write_text(json.dumps(found))
    group.leave()


def test_every_process_knows_what_the_server_keeps(tmp_path, spawn, small_networks):
    group = [spawn(tmp_path / "found", function=follow, environment=e) for e in environments(2)]
    for process in group:
        process.join(300)
    assert [process.exitcode for process in group] == [0, 0]
    first, second = (json.loads((tmp_path / f"found.{rank}").read_text()) for rank in range(2))
    models = dict(zip(CASES, [entry for entry in first if isinstance(entry, str)], strict=True))
    assert [entry for entry in first if not isinstance(entry, str)] == second
    assert len(second) == ROUNDS * len(CASES)
    kept = [entry for entry in second if any(value is not None for _, value in entry)]
    assert len(kept) >= 3 * (ROUNDS - 1)  # FedACG, LaS-FL and the class of this file
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for name in ("fedacg", "scaffold", "las that keeps", "Controlled", "Keeping", "Weightless"):
        run = train_rounds(prepare_case(name), ROUNDS)
        kept = repr(sorted_state(run)) if name == "Keeping" else ""
        assert digest(run.server.theta) + kept == models[name], name
    torch.set_num_threads(before)


class Unnamed(FedAvg):
    def merge(self, theta, step, aggregate):
        self.last = step.clone()
        return super().merge(theta, step, aggregate)


class InPlace(FedAvg):
    def __init__(self, layout, run=None, **options):
        super().__init__(layout, run, **options)
        self.total = torch.zeros(layout.dim)

    def merge(self, theta, step, aggregate):
        self.total += step
        return super().merge(theta, step, aggregate)


class AtClients(FedAvg):
    server_state = ("losses",)

    def client_update(self, delta, start, client):
        self.losses = (self.losses or 0) + 1
        return super().client_update(delta, start, client)


class AsItSends(FedAvg):
    def broadcast(self, theta):
        self.sent = theta.clone()
        return theta


@pytest.mark.parametrize(
    ("cls", "name"), [(Unnamed, "last"), (InPlace, "total"), (AtClients, "losses"), (AsItSends, "sent")]
)
def test_what_no_checkpoint_would_hold_is_refused_by_its_name(experiment, cls, name):
    run = experiment()
    put_algorithm(run, cls)
    with pytest.raises(InputError, match=rf"{cls.__name__}: changed self\.{name} as"):
        train_round(run, 1)
