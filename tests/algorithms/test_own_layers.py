"""FedPer, LG-FedAvg and FedRep: which layers stay with the clients, and what crosses the wire without them."""

import pytest
import torch
from conftest import train_round

import fedalg
from fedmerge import wire
from fedmerge.algorithms.fedper import FedPer
from fedmerge.algorithms.lg_fedavg import LGFedAvg
from fedmerge.errors import InputError
from fedmerge.networks import Layout
from fedmerge.registry import ALGORITHMS

# conv [0, 3), norm [3, 5) with buffers [9, 11), head [5, 9)
LAYOUT = Layout(
    names=("conv.weight", "norm.weight", "fc.weight"),
    sizes=(3, 2, 4),
    n_trainable=9,
    dim=11,
    layers=(((0, 3),), ((3, 5), (9, 11)), ((5, 9),)),
)
PERSONAL = ["fedbn", "fedper", "fedrep", "lg_fedavg"]
FEW = {"model_name": "small", "norm": "batch", "n_clients": 3, "participation": 1.0, "weighting": "uniform"}

pytestmark = pytest.mark.usefixtures("small_networks")


def test_the_layers_at_the_end_are_counted_with_their_buffers():
    assert FedPer(LAYOUT, fedper_layers=1).own.tolist() == [5, 6, 7, 8]
    assert FedPer(LAYOUT, fedper_layers=2).own.tolist() == [3, 4, 5, 6, 7, 8, 9, 10]
    assert LGFedAvg(LAYOUT, lg_layers=1).own.tolist() == [0, 1, 2, 3, 4, 9, 10]
    assert LGFedAvg(LAYOUT, lg_layers=2).own.tolist() == [0, 1, 2]


@pytest.mark.parametrize("made", [lambda: FedPer(LAYOUT, fedper_layers=3), lambda: LGFedAvg(LAYOUT, lg_layers=4)])
def test_some_layers_are_shared_and_some_are_not(made):
    with pytest.raises(InputError, match=r"--(fedper|lg)_layers: of 3 layers that are trained, some must be shared"):
        made()


def test_a_network_tells_its_layers(experiment):
    layout = experiment(**FEW).model.layout
    conv, hidden, head = layout.layers
    assert layout.names[:2] == ("0.weight", "0.bias")
    norm = ((80, 88), (88, 96), (layout.n_trainable, layout.n_trainable + 8), (layout.dim - 8, layout.dim))
    assert conv == ((0, 72), (72, 80), *norm)
    assert (head[0][0], head[-1][1]) == layout.head
    assert hidden[-1][1] == head[0][0]


@pytest.mark.parametrize("algorithm", ["fedper", "lg_fedavg"])
def test_layers_stay_with_their_client(experiment, one_thread, algorithm):
    """Two rounds, all clients, against whole models: some layers of the client's own, the rest averaged."""
    run = experiment(algorithm=algorithm, **FEW)
    server = run.server
    own = torch.zeros(run.model.layout.dim, dtype=torch.bool).index_fill(0, server.algorithm.own, True)
    theta, models = server.theta.clone(), [server.theta.clone()] * 3
    for round in (1, 2):
        train_round(run, round)
        starts = [torch.where(own, model, theta) for model in models]
        models = [run.clients.trainer.client(i, round).train(start).clone() for i, start in enumerate(starts)]
        theta = torch.where(own, theta, theta + sum(models) / 3 - sum(starts) / 3)
        torch.testing.assert_close(server.theta, theta, rtol=0, atol=1e-5)
        assert torch.equal(server.theta[own], theta[own])
    for i in range(3):
        mine = server.algorithm.client_model(server.theta, i)
        torch.testing.assert_close(mine, torch.where(own, models[i], theta), rtol=0, atol=1e-5)
    torch.testing.assert_close(server.served()[own], (sum(models) / 3)[own])


SENT = [
    *((name, how) for name in PERSONAL for how in ({}, {"wire": "real"})),
    ("fedper", {"bn_every": 2, "eval_every": 2}),
]


@pytest.mark.parametrize(("algorithm", "how"), SENT, ids=str)
def test_what_stays_with_a_client_is_not_sent(experiment, algorithm, how):
    run = experiment(algorithm=algorithm, **FEW, **how)
    layout, own = run.model.layout, run.server.algorithm.own
    crosses = layout.dim - len(own)
    row = train_round(run, 1)
    left_out = int((~torch.isin(torch.arange(layout.n_trainable, layout.dim), own)).sum()) if how.get("bn_every") else 0
    assert row["bytes_up"] == 3 * wire.dense_bytes(crosses - left_out)
    assert row["bytes_down"] == 0
    assert run.server.sample(2).down == {}
    run.backend.train(run.server.cohort)
    assert max(run.server.cohort.down.values()) <= wire.dense_bytes(crosses - left_out)
    assert row["kept_share"] == pytest.approx(
        int((~torch.isin(torch.arange(layout.n_trainable), own)).sum()) / layout.n_trainable
    )


def test_of_statistics_that_are_not_sent_in_a_round_only_shared_ones_are_left_out(experiment):
    """The clients keep those of the second of two norm layers, and the weights behind it."""
    settings = FEW | {"model_name": "cnn", "local_steps": 1, "bn_every": 2, "eval_every": 2}
    run = experiment(algorithm="fedper", fedper_layers=3, wire="real", **settings)
    layout, own = run.model.layout, run.server.algorithm.own
    shared_buffers = (layout.dim - layout.n_trainable) - int((own >= layout.n_trainable).sum())
    assert 0 < shared_buffers < layout.dim - layout.n_trainable
    row = train_round(run, 1)
    assert row["bytes_up"] == 3 * wire.dense_bytes(layout.dim - len(own) - shared_buffers)
    row = train_round(run, 2)
    assert row["bytes_up"] == 3 * wire.dense_bytes(layout.dim - len(own))


@pytest.mark.parametrize("algorithm", PERSONAL)
@pytest.mark.parametrize("downlink", ["sparse", "individual", "dense"])
def test_clients_hold_what_the_server_sent_and_their_own(experiment, algorithm, downlink):
    """With some of an update left out, and several bits: the server's places of what is the clients' never change."""
    how = {"compressor": "topk", "sparsity": 0.1, "value_bits": 8, "residual": "client", "wire": "real"}
    run = experiment(algorithm=algorithm, downlink=downlink, min_client_samples=2, dirichlet=0.5, **how, **FEW)
    own, before = run.server.algorithm.own, run.server.theta.clone()
    fedalg.run_rounds(run)
    assert torch.equal(run.server.theta[own], before[own])
    assert torch.equal(run.server.crossing.whole(run.server.downlink.model)[own], before[own])
    assert not torch.equal(run.server.theta, before)
    assert len(run.server.downlink.model) == len(before) - len(own)


def test_fedreps_clients_train_the_head_first(experiment, one_thread):
    """Against two runs of SGD by hand: one over the head, one over the rest, each with momentum of its own."""
    run = experiment(algorithm="fedrep", head_epochs=2, n_client_epochs=1, momentum=0.9, weight_decay=0.01, **FEW)
    layout, start = run.model.layout, run.server.theta.clone()
    client = run.clients.trainer.client(0, 1)
    trained = client.train(start).clone()
    steps = client.n_steps
    begin = layout.head[0]
    twin, model = start.clone(), run.model
    for place, epochs, rng in (
        (slice(begin, layout.n_trainable), 2, client.rng("batches", 1)),
        (slice(begin), 1, client.rng("batches")),
    ):
        velocity = torch.zeros_like(twin[place])
        for x, y in client.batches(epochs, rng):
            model.load(twin)
            model.train()
            model.gradient.zero_()
            torch.nn.functional.cross_entropy(model.module(x), y).backward()
            velocity = 0.9 * velocity + model.gradient[place] + 0.01 * twin[place]
            twin = model.vector.clone()  # with the statistics of this pass
            twin[place] -= client.lr * velocity
            steps -= 1
    assert steps == 0
    torch.testing.assert_close(trained, twin, rtol=0, atol=1e-5)


def test_the_head_alone_moves_first_also_under_what_an_algorithm_adds(experiment):
    """FedProx adds to both parts what it adds to their weights; without a head it is refused."""
    run = experiment(algorithm="fedprox", local="head_first", prox_momentum=0.5, **FEW)
    seen = []

    def correction(w, start, client):
        seen.append((w != start).nonzero().view(-1))
        return torch.zeros_like(w)

    start, head = run.server.theta.clone(), run.model.layout.head[0]
    run.clients.trainer.client(0, 1).train(start, correction)
    halfway = len(seen) // 2
    assert all(len(moved) == 0 or moved.min() >= head for moved in seen[: halfway + 1])
    assert seen[-1].min() < head
    train_round(run, 1)
    with pytest.raises(InputError, match="--local head_first needs --trainable all or norms or bias or lora, not head"):
        experiment(local="head_first", trainable="head", **FEW)
    with pytest.raises(InputError, match="--local head_first needs a last layer and others below"):
        train_round(experiment(local="head_first", **FEW | {"model_name": "line", "norm": "none"}), 1)


def test_one_layer_is_refused_before_anything_is_trained(experiment):
    with pytest.raises(InputError, match="--fedper_layers: of 3 layers"):
        experiment(algorithm="fedper", fedper_layers=3, **FEW)


def test_all_that_keep_layers_are_in_these_tests():
    assert sorted(name for name, cls in ALGORITHMS.items() if hasattr(cls, "own_ranges")) == sorted(PERSONAL)


@pytest.mark.parametrize("algorithm", ["fedbn", "lg_fedavg"])
def test_where_no_statistics_are_sent_they_cannot_be_sent_more_seldom(experiment, algorithm):
    with pytest.raises(InputError, match=f"--bn_every has no effect with --algorithm {algorithm}"):
        experiment(algorithm=algorithm, bn_every=2, eval_every=2, **FEW)


@pytest.mark.parametrize("attack", ["sign_flip", "noise"])
def test_an_attackers_own_layers_are_nobodys(experiment, attack):
    how = {"attackers": 0.34, "attack_strength": 1e6, "merge": "median", "on_nan": "skip"}
    run = experiment(algorithm="fedper", attack=attack, **how, **FEW)
    train_round(run, 1)
    assert len(run.server.algorithm.own_layers) == 2  # one of three attacks
    assert run.server.served()[run.server.algorithm.own].abs().max() < 1
