"""Each algorithm against hand-worked numbers, against a slow per-tensor twin, and against its reduction to FedAvg."""

import copy
import math

import pytest
import torch
from conftest import merge
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmerge import compressors
from fedmerge.algorithms.fedacg import FedACG
from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.algorithms.fedprox import FedProx
from fedmerge.algorithms.las import LaSFL
from fedmerge.algorithms.signsgd import SignSGD
from fedmerge.client_update import Update
from fedmerge.compressors import largest
from fedmerge.compressors.error_feedback import ErrorFeedback
from fedmerge.compressors.largest import top_k_mask
from fedmerge.config.options import all_options
from fedmerge.networks.flat_model import Layout
from fedmerge.registry import ALGORITHMS, specs

SIZES, N_BUFFERS = (4, 3, 2), 3
LAYOUT = Layout(names=("a", "b", "c"), sizes=SIZES, n_trainable=9, dim=12)


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def cohort(seed, clients=4, layout=LAYOUT):
    """Random (theta [dim], deltas [clients, dim], p [clients]) in float64."""
    g = torch.Generator().manual_seed(seed)
    theta = torch.randn(layout.dim, generator=g, dtype=torch.float64)
    deltas = torch.randn(clients, layout.dim, generator=g, dtype=torch.float64)
    p = torch.rand(clients, generator=g, dtype=torch.float64) + 0.1
    return theta, deltas, p / p.sum()


class FakeClient:
    """A client whose training adds a fixed `delta`, and records what it was given."""

    row = scratch = None

    def __init__(self, delta, number=0, round=1):
        self.delta, self.number, self.round = delta, number, round

    def train(self, start, pull):
        self.start, self.pull = start.clone(), pull
        return start + self.delta


def send(algorithm, theta, deltas, numbers=range(99), round=1):
    """Pass the `deltas` through an algorithm's client side; return what arrives, as merge() takes it."""
    updates = []
    for delta, number in zip(deltas, numbers, strict=False):
        client = FakeClient(delta, number, round)
        updates.append(algorithm.local_update(algorithm.broadcast(theta), client))
        algorithm.delivered(client, updates[-1])
    masks = None if updates[0].mask is None else torch.stack([u.mask for u in updates])
    return torch.stack([u.delta for u in updates]), masks


def one_round(algorithm, theta, deltas, p, numbers=range(99)):
    return merge(algorithm, theta, *send(algorithm, theta, deltas, numbers), p)


def build(name, **options):
    """Return the algorithm as the command line makes it, with its own defaults."""
    cls = ALGORITHMS[name]
    return cls(LAYOUT, **{k: v for k, v in cls.defaults.items() if k in cls.options} | options)


# --------------------------------------------------------------------------------------------------------------------
# By hand


def test_fedavg_by_hand(layout):
    theta = vector(0, 0, 0, 0, 1, 10, 20)
    deltas = torch.stack([vector(1, 0, 0, 0, 4, 8, 0), vector(0, 2, 0, 0, 4, 0, 4)])
    merged = one_round(FedAvg(layout), theta, deltas, vector(0.25, 0.75))
    assert torch.equal(merged, vector(0.25, 1.5, 0, 0, 5, 12, 23))


def test_fedprox_pull_by_hand(layout):
    pull = FedProx(layout, prox_momentum=0.5).pull(vector(1, 2, 3, 4, 5), vector(0, 2, 4, 4, 4))
    assert torch.equal(pull, vector(0.5, 0, -0.5, 0, 0.5))


def test_fedacg_by_hand(layout):
    """Two rounds of lambda = 0.5: m1 = mean delta; the clients then start at theta + m1 / 2, and m2 = m1 / 2 + mean."""
    algorithm, p = FedACG(layout, acg_momentum=0.5), vector(0.5, 0.5)
    theta = vector(0, 0, 0, 0, 0, 7, 7)
    first = torch.stack([vector(2, 0, 0, 0, 0, 1, 0), vector(2, 4, 0, 0, 0, 1, 0)])
    theta = one_round(algorithm, theta, first, p)
    assert torch.equal(theta, vector(2, 2, 0, 0, 0, 8, 7))
    start = algorithm.broadcast(theta)
    assert torch.equal(start, vector(3, 3, 0, 0, 0, 8, 7))  # the buffers have no momentum
    theta = one_round(algorithm, theta, torch.stack([vector(1, 0, 0, 0, 0, 2, 0)] * 2), p)
    assert torch.equal(theta, vector(2 + 1 + 1, 2 + 1, 0, 0, 0, 10, 7))


def test_fedacg_pull_is_to_the_lookahead_point(layout):
    algorithm = FedACG(layout, acg_momentum=0.5, acg_beta=2.0)
    theta = vector(0, 0, 0, 0, 0, 0, 0)
    theta = one_round(algorithm, theta, torch.stack([vector(4, 0, 0, 0, 0, 0, 0)]), vector(1))
    client = FakeClient(torch.zeros_like(theta))
    algorithm.local_update(algorithm.broadcast(theta), client)
    assert torch.equal(client.start, vector(6, 0, 0, 0, 0, 0, 0))
    w = client.start[:5] + 1
    assert torch.equal(client.pull(w, client.start[:5]), vector(2, 2, 2, 2, 2))


def test_las_by_hand(layout):
    """One of three weights of layer a and one of two of layer b are kept; where two clients overlap, their mean."""
    theta = vector(10, 10, 10, 10, 10, 1, 1)
    deltas = torch.stack([vector(5, -1, 0, 3, 1, 4, 0), vector(-3, 1, 2, 0, -6, 0, 4)])
    sent, masks = send(LaSFL(layout, sparsity=0.4), theta, deltas)
    assert masks.tolist() == [[True, False, False, True, False], [True, False, False, False, True]]
    assert torch.equal(sent, torch.stack([vector(5, 0, 0, 3, 0, 4, 0), vector(-3, 0, 0, 0, -6, 0, 4)]))
    merged = one_round(LaSFL(layout, sparsity=0.4), theta, deltas, vector(0.75, 0.25))
    assert torch.equal(merged, vector(10 + 0.75 * 5 - 0.25 * 3, 10, 10, 13, 4, 4, 2))


def test_las_global_scope_by_hand(layout):
    deltas = torch.stack([vector(5, -4, 3, 2, 1, 0, 0)])
    _, masks = send(LaSFL(layout, sparsity=0.4, mask_scope="global"), torch.zeros(7, dtype=torch.float64), deltas)
    assert masks.tolist() == [[True, True, False, False, False]]


def test_las_hands_its_options_to_the_clients_mask_learning(layout):
    asked = {}

    class Learner(FakeClient):
        def learn_mask(self, start, delta, mask, **learning):
            asked.update(learning, start=start, mask=mask)
            return torch.tensor([False, True, False, False, True])

    theta, delta = vector(1, 1, 1, 1, 1, 1, 1), vector(5, -1, 0, 3, 1, 4, 0)
    options = {"graft_epochs": 3, "graft_lr": 2.0, "sigmoid_bias": 4.0, "l1_strength": 0.5}
    algorithm = LaSFL(layout, sparsity=0.4, localiser="learned", **options)
    update = algorithm.local_update(theta, Learner(delta))
    assert torch.equal(asked.pop("start"), theta)
    assert asked.pop("mask").tolist() == [True, False, False, True, False]
    assert asked == {"epochs": 3, "lr": 2.0, "bias": 4.0, "l1_strength": 0.5}
    assert torch.equal(update.delta, vector(0, -1, 0, 0, 1, 4, 0))


def stitched(layout, **options):
    """Return what LaS-FL makes of two clients of which both kept weight 0 and each one of weights 3 and 4."""
    deltas = torch.stack([vector(5, -1, 0, 3, 1, 4, 0), vector(-3, 1, 2, 0, -6, 0, 4)])
    algorithm = LaSFL(layout, sparsity=0.4, **options)
    return one_round(algorithm, vector(10, 10, 10, 10, 10, 1, 1), deltas, vector(0.75, 0.25))


def test_stitching_over_all_and_with_a_prior_by_hand(layout):
    both = 10 + 0.75 * 5 - 0.25 * 3
    assert torch.equal(stitched(layout, stitch="all"), vector(both, 10, 10, 10 + 0.75 * 3, 10 - 0.25 * 6, 4, 2))
    halfway = stitched(layout, stitch="prior", stitch_prior=0.5)
    assert torch.allclose(halfway, vector(both, 10, 10, 10 + 0.75 * 3 / 0.875, 10 - 0.25 * 6 / 0.625, 4, 2))


def test_a_floor_gives_every_layer_its_least_share_by_hand():
    """Half of nine weights: four. Of the layers (4, 3, 2), a quarter of that share is at least one weight each."""
    delta = vector(9, 8, 7, 6, 0.1, 0.2, 0.3, 0.5, 0.4, 0, 0, 0)
    floor = LaSFL(LAYOUT, sparsity=0.5, mask_scope="floor", mask_floor=0.25)
    kept = floor.upload(delta, None, FakeClient(delta)).mask.nonzero().view(-1).tolist()
    assert kept == [0, 1, 6, 7]
    plain = LaSFL(LAYOUT, sparsity=0.5, mask_scope="global").upload(delta, None, FakeClient(delta))
    assert plain.mask.nonzero().view(-1).tolist() == [0, 1, 2, 3]


def test_the_share_kept_falls_to_the_one_asked_for(layout):
    algorithm = LaSFL(layout, sparsity=0.01, warmup_rounds=2, warmup_sparsity=0.16)
    assert [algorithm.kept_share(r) for r in (1, 2, 3, 4, 99)] == pytest.approx([0.16, 0.04, 0.01, 0.01, 0.01])
    assert LaSFL(layout, sparsity=0.3).kept_share(1) == 0.3
    wide = LaSFL(LAYOUT, sparsity=0.01, warmup_rounds=2, warmup_sparsity=1.0)
    theta, deltas, _ = cohort(0)
    assert [int(send(wide, theta, deltas, round=r)[1][0].sum()) for r in (1, 3)] == [9, 3]


def test_error_feedback_by_hand(layout):
    """Keeping one of three and one of two: what is left out is added to the client's next update, and to no other's."""
    algorithm, theta = LaSFL(layout, sparsity=0.4, residual="client"), vector(0, 0, 0, 0, 0, 0, 0)
    first, _ = send(algorithm, theta, [vector(4, 3, 1, 2, 1, 5, 6)], numbers=[7])
    assert torch.equal(first[0], vector(4, 0, 0, 2, 0, 5, 6))
    other, _ = send(algorithm, theta, [vector(4, 3, 1, 2, 1, 5, 6)], numbers=[8])
    assert torch.equal(other, first)
    second, mask = send(algorithm, theta, [vector(4, 3, 1, 1, 0.5, 5, 6)], numbers=[7])
    assert torch.equal(second[0], vector(0, 6, 0, 0, 1.5, 5, 6))
    assert mask[0].tolist() == [False, True, False, False, True]


def test_what_rounding_took_off_is_kept_too(layout):
    algorithm, client = LaSFL(layout, sparsity=0.4, residual="client"), FakeClient(vector(4, 3, 1, 2, 1, 0, 0), 7)
    sent = algorithm.local_update(torch.zeros(7, dtype=torch.float64), client)
    algorithm.delivered(client, Update(sent.delta * 0.75, sent.mask))
    assert torch.equal(algorithm.memory.left[7], vector(1, 3, 1, 0.5, 1))


def test_momentum_of_updates_by_hand():
    """Velocity u = m u + change, what is left grows by u, and both are cleared where something was sent."""
    memory, sent = ErrorFeedback(0.5), torch.tensor([True, False])
    assert torch.equal(memory.add(1, vector(4, 2)), vector(4, 2))
    memory.sent(1, vector(3, 0), sent)
    assert torch.equal(memory.add(1, vector(1, 1)), vector(1 + 1, 2 + 1 + 1))
    memory.sent(1, vector(0, 4), ~sent)
    assert torch.equal(memory.add(1, vector(0, 0)), vector(2 + 0.5, 0))


@given(seed=st.integers(0, 10**6), keep=st.floats(0.01, 0.9))
@settings(max_examples=30)
def test_with_error_feedback_nothing_is_lost(seed, keep):
    """Whoever comes when: all that a client ever sent, and what it has left, are all that it ever trained."""
    algorithm, g = LaSFL(LAYOUT, sparsity=keep, residual="client"), torch.Generator().manual_seed(seed)
    trained, sent = torch.zeros(3, 9, dtype=torch.float64), torch.zeros(3, 9, dtype=torch.float64)
    for round in range(8):
        numbers = torch.randperm(3, generator=g)[:2].tolist()
        theta, deltas, _ = cohort(seed + round, 2)
        trained[numbers] += deltas[:, :9]
        sent[numbers] += send(algorithm, theta, deltas, numbers)[0][:, :9]
    left = torch.stack([algorithm.memory.left.get(i, torch.zeros(9, dtype=torch.float64)) for i in range(3)])
    assert torch.allclose(sent + left, trained)


def test_the_server_applies_no_more_than_the_share_and_keeps_the_rest():
    algorithm, plain = (LaSFL(LAYOUT, sparsity=0.4, stitch="all", residual=r) for r in ("server", "none"))
    start, asked = cohort(0)[0], torch.zeros(12, dtype=torch.float64)
    theta = start
    for round in range(6):
        _, deltas, p = cohort(round)
        asked += one_round(plain, theta, deltas, p) - theta
        before, theta = theta, one_round(algorithm, theta, deltas, p)
        assert [int(part.sum()) for part in (theta != before)[:9].split(SIZES)] == [2, 1, 1]
    assert torch.allclose(theta[:9] + algorithm.waiting, (start + asked)[:9])


def test_the_server_chooses_of_all_that_waits(layout):
    """What was left out of an earlier round goes before a smaller step of this one; momentum is of the whole step."""
    theta, p = vector(0, 0, 0, 0, 0, 0, 0), vector(1)
    options = {"sparsity": 0.2, "mask_scope": "global", "stitch": "all", "residual": "server", "server_momentum": 0.5}
    algorithm = LaSFL(layout, **options)
    everything = torch.ones(1, 5, dtype=torch.bool)
    theta = merge(algorithm, theta, vector(8, 6, 0, 0, 0, 0, 0)[None], everything, p)
    assert torch.equal(theta, vector(8, 0, 0, 0, 0, 0, 0))
    theta = merge(
        algorithm, theta, vector(0, 0, 1, 0, 0, 0, 0)[None], everything, p
    )  # step (4, 3, 1), waiting (0, 6, 0)
    assert torch.equal(theta, vector(8, 9, 0, 0, 0, 0, 0))
    assert torch.equal(algorithm.waiting, vector(4, 0, 1, 0, 0))
    assert torch.equal(algorithm.velocity, vector(4, 3, 1, 0, 0))


def test_velocity_is_forgotten_where_everything_was_sent():
    memory = ErrorFeedback(0.5)
    memory.add(1, vector(4, 2))
    memory.sent(1, vector(4, 2), None)
    assert torch.equal(memory.add(1, vector(1, 1)), vector(1, 1))


def test_a_floor_above_the_share_is_kept(layout):
    """One weight of each layer is the least there is, though the share asks for one in all."""
    delta = vector(9, 8, 7, 1, 2, 0, 0)
    algorithm = LaSFL(layout, sparsity=0.2, mask_scope="floor", mask_floor=1.0)
    assert algorithm.upload(delta, None, FakeClient(delta)).mask.tolist() == [True, False, False, False, True]


def test_server_momentum_by_hand(layout):
    algorithm = LaSFL(layout, sparsity=1.0, server_momentum=0.5)
    theta = one_round(algorithm, vector(0, 0, 0, 0, 0, 7, 7), [vector(4, 0, 2, 0, 0, 2, 0)] * 2, vector(0.5, 0.5))
    assert torch.equal(theta, vector(4, 0, 2, 0, 0, 9, 7))
    theta = one_round(algorithm, theta, [vector(0, 1, 0, 0, 0, 0, 1)] * 2, vector(0.5, 0.5))
    assert torch.equal(theta, vector(6, 1, 3, 0, 0, 9, 8))
    theta = one_round(algorithm, theta, [vector(0, 0, 0, 0, 0, 0, 0)] * 2, vector(0.5, 0.5))
    assert torch.equal(theta, vector(7, 1.5, 3.5, 0, 0, 9, 8))


def test_signsgd_steps_where_the_weight_of_the_clients_points(layout):
    theta = vector(1, 1, 1, 1, 1, 7, 7)
    deltas = torch.stack([vector(9, -9, 9, 0, 1, 2, 0), vector(-1, -1, 1, 0, -9, 0, 4), vector(-1, 1, 1, 1, 2, 0, 0)])
    merged = one_round(SignSGD(layout, sign_step=0.5), theta, deltas, vector(0.5, 0.25, 0.25))
    assert torch.equal(merged, vector(1, 0.5, 1.5, 1.5, 1.5, 8, 8))


# --------------------------------------------------------------------------------------------------------------------
# Slow twins: dictionaries of tensors and loops, as the papers' codes have them


def as_dict(vector_):
    names = [*LAYOUT.names, "buffers"]
    return dict(zip(names, vector_.split([*SIZES, N_BUFFERS]), strict=True))


def as_vector(tensors):
    return torch.cat(list(tensors.values()))


def twin_fedavg(theta, deltas, p):
    clients = [as_dict(d) for d in deltas]
    return as_vector({k: v + sum(w * c[k] for w, c in zip(p, clients, strict=True)) for k, v in as_dict(theta).items()})


def twin_fedacg(theta, rounds, lam):
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
    return as_vector(theta)


def twin_las(theta, deltas, p, keep):
    """Entry by entry: sort a layer's changes, keep the largest, average those that kept the entry."""
    merged = {k: v.clone() for k, v in as_dict(theta).items()}
    clients = [as_dict(d) for d in deltas]
    for name, layer in merged.items():
        if name == "buffers":
            layer += sum(w * c[name] for w, c in zip(p, clients, strict=True))
            continue
        k = max(1, round(keep * len(layer)))
        kept = [sorted(range(len(layer)), key=lambda i: -abs(c[name][i].item()))[:k] for c in clients]
        for i in range(len(layer)):
            voters = [j for j in range(len(clients)) if i in kept[j]]
            if voters:
                layer[i] += sum(p[j] * clients[j][name][i] for j in voters) / sum(p[j] for j in voters)
    return as_vector(merged)


def twin_topk(theta, rounds, keep):
    """Top-k with memory (Stich et al. 2018, Algorithm 1), client by client and entry by entry; no client skips."""
    theta, memory = theta.clone(), {}
    for deltas, p in rounds:
        step = [0.0] * 9
        for number, (delta, weight) in enumerate(zip(deltas[:, :9].tolist(), p.tolist(), strict=True)):
            have = [d + m for d, m in zip(delta, memory.get(number, [0.0] * 9), strict=True)]
            kept = sorted(range(9), key=lambda i: -abs(have[i]))[: max(1, round(keep * 9))]
            step = [s + weight * (have[i] if i in kept else 0) for i, s in enumerate(step)]
            memory[number] = [0.0 if i in kept else h for i, h in enumerate(have)]
        theta[:9] += torch.tensor(step, dtype=torch.float64)
        theta[9:] += p @ deltas[:, 9:]
    return theta


@given(seed=st.integers(0, 10**6), keep=st.floats(0.01, 1))
def test_topk_equals_its_twin_over_four_rounds(seed, keep):
    algorithm, rounds = build("topk", sparsity=keep), [cohort(seed + i)[1:] for i in range(4)]
    start = theta = cohort(seed)[0]
    for deltas, p in rounds:
        theta = one_round(algorithm, theta, deltas, p)
    assert torch.allclose(theta, twin_topk(start, rounds, keep))


@given(seed=st.integers(0, 10**6), clients=st.integers(1, 6))
def test_fedavg_equals_its_twin(seed, clients):
    theta, deltas, p = cohort(seed, clients)
    assert torch.allclose(one_round(FedAvg(LAYOUT), theta, deltas, p), twin_fedavg(theta, deltas, p))


@given(seed=st.integers(0, 10**6), lam=st.floats(0, 0.99))
def test_fedacg_equals_its_twin_over_three_rounds(seed, lam):
    algorithm, rounds = FedACG(LAYOUT, acg_momentum=lam), [cohort(seed + i)[1:] for i in range(3)]
    start = theta = cohort(seed)[0]
    for deltas, p in rounds:
        theta = one_round(algorithm, theta, deltas, p)
    assert torch.allclose(theta, twin_fedacg(start, rounds, lam))


@given(seed=st.integers(0, 10**6), clients=st.integers(1, 5), keep=st.floats(0.01, 1))
def test_las_equals_its_twin(seed, clients, keep):
    theta, deltas, p = cohort(seed, clients)
    merged = one_round(LaSFL(LAYOUT, sparsity=keep), theta, deltas, p)
    assert torch.allclose(merged, twin_las(theta, deltas, p, keep))


# --------------------------------------------------------------------------------------------------------------------
# Laws

REDUCED = {  # settings at which an algorithm is FedAvg
    "fedavg": {},
    "fedprox": {"prox_momentum": 0.0},
    "fedacg": {"acg_momentum": 0.0, "acg_beta": 0.0},
    "las": {"sparsity": 1.0},
    "topk": {"sparsity": 1.0},
    "stc": {"sparsity": 1.0},
    "krum": {"liars": 0.0},
}
ROBUST = {"median", "trimmed_mean", "krum"}  # buffers are what clients may lie about too
STITCHES = [
    {},
    {"stitch": "all", "residual": "client"},
    {"residual": "server", "stitch": "prior"},
    {"mask_scope": "floor"},
]
MOMENTA = [{"residual": "client", "residual_momentum": 0.5, "server_momentum": 0.5}]


@pytest.mark.parametrize("name", REDUCED)
@given(seed=st.integers(0, 10**6), clients=st.integers(1, 6))
@settings(max_examples=20)
def test_each_reduces_to_fedavg(name, seed, clients):
    algorithm, theta = build(name, **REDUCED[name]), cohort(seed)[0]
    expected = theta
    for i in range(2):
        _, deltas, p = cohort(seed + i, clients)
        theta = one_round(algorithm, theta, deltas, p)
        expected = one_round(FedAvg(LAYOUT), expected, deltas, p)
    assert torch.allclose(theta, expected)


@pytest.mark.parametrize("options", STITCHES, ids=str)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=20)
def test_las_keeping_everything_is_fedavg_however_it_is_stitched(options, seed):
    algorithm, theta = LaSFL(LAYOUT, sparsity=1.0, **options), cohort(seed)[0]
    expected = theta
    for i in range(2):
        _, deltas, p = cohort(seed + i)
        theta, expected = one_round(algorithm, theta, deltas, p), one_round(FedAvg(LAYOUT), expected, deltas, p)
    assert torch.allclose(theta, expected)


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
@given(seed=st.integers(0, 10**6), order=st.permutations(range(4)))
@settings(max_examples=20)
def test_the_order_of_clients_does_not_matter(name, seed, order):
    merged = []
    for i in (range(4), order):
        algorithm, theta = build(name), cohort(seed)[0]
        for round in range(2):
            _, deltas, p = cohort(seed + round)
            theta = one_round(algorithm, theta, deltas[list(i)], p[list(i)], numbers=i)
        merged.append(theta)
    assert torch.allclose(*merged)


@pytest.mark.parametrize("name", sorted(set(ALGORITHMS) - ROBUST))
def test_buffers_are_averaged_whatever_the_algorithm_does_to_weights(name):
    theta, deltas, p = cohort(3)
    algorithm = build(name)
    for _ in range(2):  # the second round has momentum
        merged = one_round(algorithm, theta, deltas, p)
        assert torch.allclose(merged[9:], theta[9:] + p @ deltas[:, 9:])
        theta = merged


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_nothing_given_is_changed(name):
    theta, deltas, p = cohort(4)
    before = [t.clone() for t in (theta, deltas, p)]
    algorithm = build(name)
    for _ in range(2):
        one_round(algorithm, theta, deltas, p)
    assert all(torch.equal(a, b) for a, b in zip((theta, deltas, p), before, strict=True))


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in sorted(ALGORITHMS)), *(("las", o) for o in STITCHES[1:] + MOMENTA)],
    ids=str,
)
def test_a_loaded_state_continues_like_the_one_it_came_from(name, options):
    theta, deltas, p = cohort(5)
    algorithm, other = (build(name, **options) for _ in range(2))
    theta = one_round(algorithm, theta, deltas, p)
    other.load(copy.deepcopy(algorithm.state()))
    _, deltas, p = cohort(6)
    assert torch.equal(one_round(algorithm, theta, deltas, p), one_round(other, theta, deltas, p))


def test_a_weight_nobody_kept_stays_the_servers():
    theta, deltas, p = cohort(7)
    sent, masks = send(LaSFL(LAYOUT, sparsity=0.3), theta, deltas)
    merged = merge(LaSFL(LAYOUT), theta, sent, masks, p)
    untouched = ~masks.any(0)
    assert untouched.any()
    assert torch.equal(merged[:9][untouched], theta[:9][untouched])


@given(values=st.lists(st.integers(-50, 50), min_size=1, max_size=40), keep=st.floats(0.01, 1), cut=st.integers(0, 40))
def test_top_k_keeps_exactly_the_share_of_each_block_and_the_largest(values, keep, cut):
    delta = torch.tensor(values, dtype=torch.float64)
    cut = min(cut, len(values) - 1)
    sizes = [cut, len(values) - cut] if cut else [len(values)]
    mask = top_k_mask(delta, keep, sizes)
    for part, chosen in zip(delta.split(sizes), mask.split(sizes), strict=True):
        assert chosen.sum() == max(1, round(keep * len(part)))
        if not chosen.all():
            assert part[chosen].abs().min() >= part[~chosen].abs().max()


# --------------------------------------------------------------------------------------------------------------------
# The registry


def test_the_command_line_reads_what_is_registered():
    found = specs("algorithm")
    assert {name: spec.options for name, spec in found.items()} == {n: cls.options for n, cls in ALGORITHMS.items()}
    for name, spec in found.items():
        own = vars(ALGORITHMS[name])
        assert (spec.defaults, spec.presets) == (own.get("defaults", {}), own.get("presets", {}))
        assert set(spec.defaults) | {flag for preset in spec.presets.values() for flag in preset} <= set(all_options())
    assert all(spec.summary for spec in found.values())


def test_an_unknown_option_is_refused(layout):
    with pytest.raises(TypeError, match="FedProx has no option mu"):
        FedProx(layout, mu=1)


def largest_of(values, k):
    """Places of the k largest |values|, of equal ones the first; what is not a number is larger than all."""
    order = sorted(range(len(values)), key=lambda i: (-torch.inf if math.isnan(values[i]) else -abs(values[i]), i))
    return set(order[:k])


def spread(kind, n, g):
    """n float32 numbers of which a sample tells little: heavy tails, ties, steps, one large among zeros."""
    noise = torch.randn(n, generator=g)
    return {
        "normal": noise,
        "heavy": noise / torch.rand(n, generator=g) ** 3,
        "rounded": (noise * 2).round(),
        "constant": torch.full((n,), -0.5),
        "zeros": torch.zeros(n).index_fill_(0, torch.randint(n, (3,), generator=g), 7.0),
        "two sizes": torch.where(noise > 1.2, 1.0, -1e-3),
        "sorted": noise.sort().values,
        "with nan": noise.index_fill(0, torch.randint(n, (5,), generator=g), torch.nan),
        "with infinities": noise.index_fill(0, torch.randint(n, (5,), generator=g), -torch.inf),
        "subnormal": noise * 1e-39,
    }[kind]


PLAIN_KINDS = ("normal", "heavy", "rounded", "constant", "zeros", "sorted", "subnormal")


@pytest.mark.parametrize("kind", [*PLAIN_KINDS, "two sizes", "with nan", "with infinities"])
@pytest.mark.parametrize("n", [4096, 20_001])
def test_the_largest_of_many_are_those_of_a_sort(kind, n, monkeypatch):
    g = torch.Generator().manual_seed(n)
    values = spread(kind, n, g)
    assert n >= compressors.LARGE
    monkeypatch.setattr(largest, "CHUNK", 8192)
    for keep in (1 / n, 0.001, 0.1, 0.5, 0.999, 1.0):
        mask = top_k_mask(values, keep, (n,))
        assert set(mask.nonzero().view(-1).tolist()) == largest_of(values.tolist(), max(1, round(keep * n)))


def test_bounds_that_are_wrong_cost_another_pass_and_nothing_else(monkeypatch):
    values, passes = torch.randn(20_000, generator=torch.Generator().manual_seed(0)), []
    divide = largest._divide
    monkeypatch.setattr(largest, "_divide", lambda *given: passes.append(given[1:3]) or divide(*given))
    expected = top_k_mask(values, 0.1, (20_000,))
    assert len(passes) == 1
    monkeypatch.setattr(largest, "PLACES", compressors.PLACES * 0.1)  # of the first tenth only
    values, expected = values.sort().values, expected[values.argsort()]
    assert torch.equal(top_k_mask(values, 0.1, (20_000,)), expected)
    assert len(passes) == 3
