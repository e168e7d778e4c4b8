"""What is kept is not overwritten by what the program uses its memory for next, though nobody made a copy."""

import pytest
import torch
from conftest import QUICK, put_algorithm, train_rounds

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.client_update import ClientUpdate
from fedmerge.config.resolve import resolve
from fedmerge.errors import InputError
from fedmerge.simulation.experiment import prepare


class Copying(FedAvg):
    """Clients keep parts of all that they are handed, and start from what they kept."""

    uploads = statistics = ("control",)
    server_state = ("control", "stepped")
    client_state = ("arrived", "change", "trained", "gradient", "told", "begun")

    def kept(self, part):
        return part.clone()

    def client_start(self, received, client):
        n, start = self.layout.n_trainable, received.clone()
        for name, of_client in self.of_clients().items():
            if client.id in of_client:
                start[:n] += 1e-3 * of_client[client.id][:n] / (1 if name == "gradient" else 10)
        self.begun[client.id] = self.kept(received)
        return start

    def client_update(self, delta, start, client):
        n = self.layout.n_trainable
        self.change[client.id] = self.kept(delta)
        self.trained[client.id] = self.kept(client.model.vector)
        self.gradient[client.id] = self.kept(client.model.gradient)
        self.told[client.id] = self.kept(client.start[: self.layout.n_trainable])
        return ClientUpdate(delta, control=delta[:n] * 2)

    def acknowledge(self, client, decoded):
        self.arrived[client.id] = self.kept(decoded.control)

    def merge(self, theta, step, aggregate):
        self.stepped = self.kept(step[: self.layout.n_trainable])
        self.control = aggregate.mean["control"] + self.stepped
        return theta + step


class Keeping(Copying):
    def kept(self, part):
        return part


@pytest.mark.parametrize("rule", ["mean", "median"])
def test_what_is_kept_needs_no_clone(rule):
    models = []
    for cls in (Copying, Keeping):
        run = prepare(resolve({**QUICK, "merge": rule, "norm": "none", "n_client_epochs": 1}))
        put_algorithm(run, cls)
        models.append(train_rounds(run, 3).server.theta)
    assert torch.equal(*models)


def test_the_model_is_not_a_row_of_updates():
    class Bare(FedAvg):
        def merge(self, theta, step, aggregate):
            return aggregate.deltas[0]

    run = prepare(resolve({**QUICK, "merge": "median"}))
    put_algorithm(run, Bare)
    theta = train_rounds(run, 1).server.theta
    assert theta.untyped_storage().data_ptr() != run.server._rows(1).untyped_storage().data_ptr()


def test_a_part_of_the_step_that_becomes_the_model_is_refused():
    class Careless(FedAvg):
        server_state = ("velocity",)

        def merge(self, theta, step, aggregate):
            self.velocity = step[: self.layout.n_trainable]
            return step.add_(theta)

    run = prepare(resolve(QUICK))
    put_algorithm(run, Careless)
    with pytest.raises(InputError, match=r"Careless: merge keeps a part of `step` as self.velocity, and makes the mod"):
        train_rounds(run, 1)
