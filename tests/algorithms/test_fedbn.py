"""FedBN against whole models of its clients, and where it is FedAvg."""

import torch
from conftest import train_round

from fedmerge.simulation.server import make_algorithm


def test_under_fedbn_norm_layers_stay_with_their_client(experiment):
    """Two rounds, all clients, against whole models: norm layers of the client's own, the rest averaged."""
    run = experiment(algorithm="fedbn", norm="batch", n_clients=3, participation=1.0, weighting="uniform")
    own = torch.cat([torch.arange(*place) for place in run.model.layout.norms])
    rest = torch.ones(run.model.layout.dim, dtype=torch.bool).index_fill(0, own, False)
    theta, models = run.server.theta.clone(), [run.server.theta.clone()] * 3
    for round in (1, 2):
        train_round(run, round)
        for number in range(3):
            start = torch.where(rest, theta, models[number])
            models[number] = run.clients.trainer.client(number, round).train(start).clone()
        before, theta = theta, torch.where(rest, sum(models) / 3, theta)
        # Rounding decides which of equal pixels max-pooling takes, so the two drift.
        assert (run.server.theta - theta).norm() < 0.1 * (theta - before).norm()
        assert torch.equal(run.server.theta[own], theta[own])
    for number in range(3):
        mine = run.server.algorithm.client_model(run.server.theta, number)
        expected = torch.where(rest, theta, models[number])
        assert (mine - expected)[own].norm() < 0.1 * (models[0] - models[1])[own].norm()
        assert torch.equal(mine[rest], run.server.theta[rest])
    mean = sum(run.server.algorithm.own_layers.values()) / 3
    assert torch.allclose(run.server.served(), run.server.theta.index_copy(0, own, mean))
    again = make_algorithm(run.settings, run.model.layout)
    again.load_state_dict(run.server.algorithm.state_dict())
    assert torch.equal(again.client_model(run.server.theta, 1), run.server.algorithm.client_model(run.server.theta, 1))


def test_without_norm_layers_fedbn_is_fedavg_and_says_so(experiment, capsys):
    both = []
    for algorithm in ("fedavg", "fedbn"):
        run = experiment(algorithm=algorithm, norm="none")
        train_round(run, 1)
        both.append(run.server.served())
    assert torch.equal(*both)
    assert capsys.readouterr().err == "warning: --algorithm fedbn is FedAvg where no normalisation layer is trained\n"
