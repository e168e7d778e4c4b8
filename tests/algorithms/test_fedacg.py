"""FedACG by hand, and against its twin on dicts of tensors."""

import torch
from conftest import train_round
from hypothesis import given
from hypothesis import strategies as st
from toy import SIZES, FakeClient, build, cohort, let_train, one_round, vector

from fedmerge.simulation.sampling import sample_clients


def test_fedacg_by_hand(layout):
    """Two rounds of lambda = 0.5: m1 = mean delta; the clients then start at theta + m1 / 2, and m2 = m1 / 2 + mean."""
    server, p = build(layout, algorithm="fedacg", acg_momentum=0.5), vector(0.5, 0.5)
    theta = vector(0, 0, 0, 0, 0, 7, 7)
    first = torch.stack([vector(2, 0, 0, 0, 0, 1, 0), vector(2, 4, 0, 0, 0, 1, 0)])
    theta = one_round(server, theta, first, p)
    assert torch.equal(theta, vector(2, 2, 0, 0, 0, 8, 7))
    start = server.algorithm.broadcast(theta)
    assert torch.equal(start, vector(3, 3, 0, 0, 0, 8, 7))  # the buffers have no momentum
    theta = one_round(server, theta, torch.stack([vector(1, 0, 0, 0, 0, 2, 0)] * 2), p)
    assert torch.equal(theta, vector(2 + 1 + 1, 2 + 1, 0, 0, 0, 10, 7))


def test_the_correction_is_to_the_lookahead_point(layout):
    server = build(layout, algorithm="fedacg", acg_momentum=0.5, acg_beta=2.0)
    theta = vector(0, 0, 0, 0, 0, 0, 0)
    theta = one_round(server, theta, torch.stack([vector(4, 0, 0, 0, 0, 0, 0)]), vector(1))
    client = FakeClient(torch.zeros_like(theta))
    let_train(server, theta, client)
    assert torch.equal(client.start, vector(6, 0, 0, 0, 0, 0, 0))
    w = client.start[:5] + 1
    assert torch.equal(client.correction(w, client.start[:5], client), vector(2, 2, 2, 2, 2))


def as_dict(vector_):
    return dict(zip(("a", "b", "c", "buffers"), vector_.split([*SIZES, 3]), strict=True))


def twin(theta, rounds, lam):
    """FedACG's models written with whole client models w_c, as in the paper: m = lam m + sum p_c (w_c - lookahead)."""
    theta = {k: v.clone() for k, v in as_dict(theta).items()}
    momentum = {k: torch.zeros_like(v) for k, v in theta.items()}
    for deltas, p in rounds:
        lookahead = {k: v + (lam * momentum[k] if k != "buffers" else 0) for k, v in theta.items()}
        clients = [{k: lookahead[k] + v for k, v in as_dict(d).items()} for d in deltas]
        for k in theta:
            mean = sum(w * c[k] for w, c in zip(p, clients, strict=True))
            momentum[k] = lam * momentum[k] + (mean - lookahead[k]) if k != "buffers" else mean - lookahead[k]
            theta[k] = theta[k] + momentum[k]
    return torch.cat(list(theta.values()))


@given(seed=st.integers(0, 10**6), lam=st.floats(0, 0.99))
def test_fedacg_equals_its_twin_over_three_rounds(seed, lam):
    server, rounds = build(algorithm="fedacg", acg_momentum=lam), [cohort(seed + i)[1:] for i in range(3)]
    start = theta = cohort(seed)[0]
    for deltas, p in rounds:
        theta = one_round(server, theta, deltas, p)
    assert torch.allclose(theta, twin(start, rounds, lam))


def test_fedacg_merges_into_the_servers_model_and_not_into_the_lookahead(experiment):
    """Three rounds of the loop against whole client models: theta + m, m = lambda m + (mean - lookahead)."""
    run = experiment(algorithm="fedacg", acg_momentum=0.5, weighting="uniform")
    theta, momentum = run.server.theta.clone(), 0
    for round in (1, 2, 3):
        train_round(run, round)
        lookahead = theta + 0.5 * momentum
        numbers = sample_clients(20, 0.2, 0, round)
        mean = sum(run.clients.trainer.client(n, round).train(lookahead).clone() for n in numbers) / 4
        momentum = 0.5 * momentum + mean - lookahead
        theta = theta + momentum
        # Rounding decides which of equal pixels max-pooling takes, so the two drift; the wrong formula is 50 % off.
        assert (run.server.theta - theta).norm() < 0.05 * momentum.norm()
