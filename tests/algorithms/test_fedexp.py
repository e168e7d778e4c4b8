"""FedExP by hand, and where all agree."""

import torch

import fedalg
from fedmerge.algorithms.fedexp import FedExP
from fedmerge.merging import Aggregate, Arrival
from fedmerge.networks import Layout
from fedmerge.registry import MERGING_RULES

LAYOUT = Layout(names=("a",), sizes=(2,), n_trainable=2, dim=3)


def test_one_merge_by_hand():
    """Updates (6, 8) and (6, -8) of weights 3 and 1: squares 100; the mean (6, 4) has 52: 100 / 2 * 52 < 1. Of weights
    1 and 1 it is (6, 0), of 36: 100 / (2 * 36.5) with epsilon 0.5."""
    for weights, eta in (((3, 1), 1.0), ((1, 1), 100 / 73)):
        p = torch.tensor([float(w) for w in weights]) / sum(weights)
        updates = torch.tensor([[6.0, 8.0, 1.0], [6.0, -8.0, 1.0]])
        aggregate = Aggregate([Arrival(i, w, 1, w) for i, w in enumerate(weights)])
        aggregate.mean = {"update": p @ updates, "square": p @ updates[:, :2].square()}
        found = MERGING_RULES["fedexp"](aggregate, LAYOUT, exp_epsilon=0.5)
        torch.testing.assert_close(found, p @ updates * torch.tensor([eta, eta, 1.0]))


def test_what_is_judged_is_the_mean_of_the_last_two_models():
    algorithm = FedExP(LAYOUT)
    new = algorithm.merge(torch.ones(3), torch.tensor([1.0, 2.0, 3.0]), None)
    assert new.tolist() == [2.0, 3.0, 4.0]
    assert algorithm.global_model(new).tolist() == [1.5, 2.0, 4.0]  # a buffer is the newest


def test_squares_that_overflow_leave_the_mean_as_it_is():
    mean = {"update": torch.full((3,), 1e25), "square": torch.full((2,), torch.inf)}
    found = MERGING_RULES["fedexp"](Aggregate([Arrival(0, 1, 1, 1)], mean), LAYOUT, exp_epsilon=0.5)
    assert found.tolist() == torch.full((3,), 1e25).tolist()


def test_one_client_alone_is_fedavg_but_for_the_mean_of_two_models(experiment):
    settings = {"n_clients": 1, "participation": 1.0, "local_steps": 3, "quiet": True}
    runs = [experiment(algorithm=name, **settings) for name in ("fedexp", "fedavg")]
    for run in runs:
        before = run.server.theta
        run.history.add(fedalg.train_round(run, 1))
    torch.testing.assert_close(runs[0].server.theta, runs[1].server.theta)
    torch.testing.assert_close(runs[0].server.served(), (before + run.server.theta) / 2)
