"""What the server keeps between rounds is the same in every process before clients train; nothing is kept elsewhere."""

import json

import pytest
import torch
from test_ranks import digest, environments, settings_of

import fedalg
from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.config.resolve import resolve
from fedmerge.registry import ALGORITHMS, LOCAL_METHODS
from fedmerge.simulation import distributed, rounds
from fedmerge.simulation.process_group import Ranks

ROUNDS = 3


class Controlled(FedAvg):
    """Clients start a step further along the server's last step, which they read as they train, as SCAFFOLD would."""

    own = ("control", "told")
    control = None  # then [n_trainable]
    told = 0.0  # a plain value

    def local_update(self, start, client):
        if self.control is not None:
            start = start.clone()
            start[: self.layout.n_trainable] += 0.5 * self.told * self.control
        return super().local_update(start, client)

    def merge(self, theta, arrived):
        self.control, self.told = arrived.mean["update"][: self.layout.n_trainable].clone(), self.told + 0.1
        return super().merge(theta, arrived)


class Keeping(FedAvg):
    """Clients keep tensors of several kinds and shapes, and change them by what they train."""

    def __init__(self, layout, **options):
        super().__init__(layout, **options)
        self.kinds = {"signs": {}, "table": {}, "steps": {}, "scalar": {}}

    def held(self):
        return self.kinds

    def local_update(self, start, client):
        number, before = client.number, self.kinds["steps"].get(client.number, torch.zeros(3, dtype=torch.int64))
        update = super().local_update(start, client)
        self.kinds["signs"][number] = update.delta[:64] > 0
        self.kinds["table"][number] = update.delta[:200].double().view(2, 100)
        self.kinds["steps"][number] = before + client.seen
        self.kinds["scalar"][number] = update.delta.sum()
        return update


CASES = {
    **{name: {"algorithm": name} for name in sorted(set(ALGORITHMS) - {"centralised"})},
    **{f"local {name}": {"local": name} for name in sorted(LOCAL_METHODS)},
    "las that keeps": {"algorithm": "las", "server_momentum": 0.5, "residual": "server"},
    "Controlled": {},
    "Keeping": {},
}


def prepare(name, group=None):
    exp = fedalg.prepare(resolve({**settings_of(CASES[name]), "norm": "none"}), group)
    cls = {"Controlled": Controlled, "Keeping": Keeping}.get(name)
    if cls:
        exp.algorithm = cls(exp.model.layout)
    return exp


def seen(exp):
    """What this process knows of what the server keeps, as plain values."""
    return [[name, digest(v) if torch.is_tensor(v) else v] for _, name, v in distributed.own_of(exp)]


def sorted_state(algorithm):
    """What clients keep, as plain values in one order."""
    held = algorithm.held().items()
    return [(kind, n, str(t.dtype), t.tolist()) for kind, of in held for n, t in sorted(of.items())]


def follow(path):
    """What one process of a group does: train all cases; write what it sees as each round begins, and the models."""
    torch.set_num_threads(1)
    group, found, train = Ranks.join(), [], rounds.train_clients

    def noting(exp, *what):
        found.append(seen(exp))
        return train(exp, *what)

    rounds.train_clients = noting
    for name in CASES:
        if group.rank:
            distributed.serve(group, lambda name=name: prepare(name, group))
        else:
            exp = prepare(name, group)
            for round in range(1, ROUNDS + 1):
                exp.rows.append(rounds.train_round(exp, round))
            found.append(digest(exp.theta))
            if name == "Keeping":
                found[-1] += repr(sorted_state(exp.algorithm))
            group.tell({"status": 0})
    path.with_suffix(f".{group.rank}").write_text(json.dumps(found))
    group.leave()


def test_every_process_knows_what_the_server_keeps(tmp_path, spawn, monkeypatch):
    group = [spawn(tmp_path / "found", function=follow, environment=e) for e in environments(2)]
    for process in group:
        process.join(300)
    assert [process.exitcode for process in group] == [0, 0]
    first, second = (json.loads((tmp_path / f"found.{rank}").read_text()) for rank in range(2))
    models = dict(zip(CASES, [entry for entry in first if isinstance(entry, str)], strict=True))
    assert [entry for entry in first if not isinstance(entry, str)] == second
    kept = [entry for entry in second if any(value is not None for _, value in entry)]
    assert len(kept) >= 3 * (ROUNDS - 1)  # FedACG, LaS-FL and the class of this file
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for name in ("fedacg", "las that keeps", "Controlled", "Keeping"):
        exp = prepare(name)
        for round in range(1, ROUNDS + 1):
            exp.rows.append(rounds.train_round(exp, round))
        kept = repr(sorted_state(exp.algorithm)) if name == "Keeping" else ""
        assert digest(exp.theta) + kept == models[name], name
    torch.set_num_threads(before)


class Unnamed(FedAvg):
    def merge(self, theta, arrived):
        self.last = arrived.mean["update"].clone()
        return super().merge(theta, arrived)


class InPlace(FedAvg):
    def __init__(self, layout, **options):
        super().__init__(layout, **options)
        self.total = torch.zeros(layout.dim)

    def merge(self, theta, arrived):
        self.total += arrived.mean["update"]
        return super().merge(theta, arrived)


class AtClients(FedAvg):
    own = ("losses",)
    losses = 0

    def local_update(self, start, client):
        self.losses += 1
        return super().local_update(start, client)


@pytest.mark.parametrize(("cls", "name"), [(Unnamed, "last"), (InPlace, "total"), (AtClients, "losses")])
def test_what_no_checkpoint_would_hold_is_refused_by_its_name(experiment, cls, name):
    exp = experiment()
    exp.algorithm = cls(exp.model.layout)
    with pytest.raises(TypeError, match=rf"{cls.__name__} changed self\.{name} as"):
        rounds.train_round(exp, 1)
