"""Adapters merged as products, against the decomposition of the whole matrices, and by laws."""

import pytest
import torch
from conftest import QUICK, assert_alike, train_round, train_rounds

from fedmerge.config.resolve import resolve
from fedmerge.errors import InputError
from fedmerge.merging import Aggregate, Arrival
from fedmerge.merging.products import merge_products
from fedmerge.networks import Layout
from fedmerge.simulation.experiment import prepare

OUT, IN, RANK, OTHERS = 7, 5, 2, 3
LAYOUT = Layout(
    names=("x.a", "x.b", "head"),
    sizes=(RANK * IN, OUT * RANK, OTHERS),
    n_trainable=RANK * (IN + OUT) + OTHERS,
    dim=RANK * (IN + OUT) + OTHERS,
    adapters=((0, RANK * IN, RANK * (IN + OUT), RANK),),
)
SMALL = {**QUICK, "device": "cpu", "trainable": "lora", "lora_rank": 2, "participation": 0.2, "local_steps": 4}


def product(vector):
    a, b, _ = vector.split(LAYOUT.sizes)
    return b.view(OUT, RANK) @ a.view(RANK, IN)


def round_of(n, seed=0):
    """Random theta [dim], deltas [n, dim] and weights, as an Aggregate has them, in float64."""
    rng = torch.Generator().manual_seed(seed)
    theta = torch.randn(LAYOUT.dim, generator=rng, dtype=torch.float64)
    deltas = torch.randn(n, LAYOUT.dim, generator=rng, dtype=torch.float64)
    arrived = [Arrival(i, 1, 1, 1.0 + i) for i in range(n)]
    return theta, Aggregate(arrived, deltas=deltas)


@pytest.mark.parametrize("n", [1, 2, 6])
def test_the_products_mean_is_cut_back_as_the_whole_matrix_would_be(n):
    theta, aggregate = round_of(n)
    shares = aggregate.shares(theta)
    mean = sum(p * product(theta + delta) for p, delta in zip(shares, aggregate.deltas, strict=True))
    u, values, v = torch.linalg.svd(mean)
    best = u[:, :RANK] * values[:RANK] @ v[:RANK]
    plain = shares @ aggregate.deltas
    step = merge_products(plain.clone(), aggregate, theta, LAYOUT)
    torch.testing.assert_close(product(theta + step), best)
    assert torch.equal(step[-OTHERS:], plain[-OTHERS:])
    a, b, _ = (theta + step).split(LAYOUT.sizes)
    torch.testing.assert_close(a.norm(), b.norm())  # the roots are shared


def test_the_order_of_clients_does_not_matter():
    theta, aggregate = round_of(4)
    step = merge_products(torch.zeros_like(theta), aggregate, theta, LAYOUT)
    other = Aggregate(aggregate.arrived[::-1], deltas=aggregate.deltas.flip(0))
    torch.testing.assert_close(
        product(theta + merge_products(torch.zeros_like(theta), other, theta, LAYOUT)), product(theta + step)
    )


def test_adapters_of_which_nothing_has_come_stay_as_they_are():
    theta, aggregate = round_of(3)
    theta[RANK * IN : RANK * (IN + OUT)] = 0
    aggregate.deltas[:] = 0
    assert merge_products(torch.zeros_like(theta), aggregate, theta, LAYOUT).eq(0).all()


def test_one_client_is_as_with_factors():
    settings = {**SMALL, "n_clients": 5}
    one, other = (prepare(resolve({**settings, "lora_merge": how})) for how in ("factors", "products"))
    images = one.splits.normalise(one.splits.test.images)
    logits = []
    for run in (one, other):
        train_round(run, 1)
        run.model.load(run.server.theta)
        logits.append(run.model.module.eval()(images))
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-4)
    assert not torch.equal(one.server.theta, other.server.theta)


def test_it_goes_on_from_a_checkpoint_and_side_by_side():
    settings = {**SMALL, "lora_merge": "products", "algorithm": "fedprox", "compressor": "topk"}
    assert_alike(*(train_rounds(prepare(resolve({**settings, "parallel_clients": n})), 2) for n in (1, 3)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lora_freeze_a": True}, "with --lora_freeze_a"),
        ({"merge": "median"}, "needs --merge mean, not median"),
        ({"algorithm": "fedacg"}, "adds the merged step as it is, such as fedavg or fedprox, not fedacg"),
        ({"algorithm": "fedavgm"}, "not fedavgm"),
        ({"algorithm": "las", "merge": "mean", "server_momentum": 0.9}, "not las"),
    ],
)
def test_what_it_does_not_go_with_is_refused(settings, said):
    with pytest.raises(InputError, match=said):
        prepare(resolve({**SMALL, "lora_merge": "products", **settings}))
