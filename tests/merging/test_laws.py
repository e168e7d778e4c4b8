"""What holds of every merging rule, or of all but those that say so: on 9 weights and 3 buffers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import LAYOUT, FakeClient, cohort

from fedmerge.client_update import ClientUpdate
from fedmerge.merging import Aggregate, Arrival, WeightedSums, find_statistics, measured_for, needs_of
from fedmerge.merging.directions import orthogonal, present
from fedmerge.networks import Layout
from fedmerge.registry import MERGING_RULES

WHOLE = {  # settings at which a rule leaves nothing of an update out
    "ties": {"ties_keep": 1.0},
    "dare": {"dare_keep": 1.0},
    "della": {"della_keep": 1.0, "della_spread": 0.0},
    "breadcrumbs": {"breadcrumbs_keep": 1.0},
    "task_arithmetic": {"task_scale": 1.0},
}
SHAPED = {"sign", "iso_c"}  # even an update that comes alone gets another form
ADDED_UP = {"task_arithmetic"}  # equal updates count as often as they come
CUT = {"tsv_m"}  # of n clients, each has an n-th of the rank
FIXED = {"sign", "fedexp"}  # a step of one length; an epsilon beside squares
anything = given(seed=st.integers(0, 10**6), clients=st.integers(1, 5))


def merged(rule, deltas, p, seed=0, round=1, **options):
    """Return the step [12] that a rule makes of the updates [clients, 12] of clients with the weights p."""
    function, weights = MERGING_RULES[rule], p.tolist()
    default = {name: value for name, (value, *_) in function.registered.get("options", {}).items()}
    _, measure = measured_for(function, LAYOUT, default | options)
    more = [{} if measure is None else measure(FakeClient(delta, i)) for i, delta in enumerate(deltas)]
    aggregate = Aggregate([Arrival(i, 1, 1, w) for i, w in enumerate(weights)], round=round, seed=seed)
    if isinstance(needs_of(function), str):
        aggregate.deltas = deltas.clone()
        aggregate.more = {name: torch.stack([one[name] for one in more]) for name in more[0]}
    else:
        sums = WeightedSums(find_statistics(needs_of(function)), LAYOUT)
        for delta, weight, own in zip(deltas, weights, more, strict=True):
            sums.add(ClientUpdate(delta, **own), weight)
        aggregate.mean = sums.means(sum(weights), len(weights))
    return function(aggregate, layout=LAYOUT, **default | options)


@pytest.mark.parametrize("rule", sorted(set(MERGING_RULES) - SHAPED))
@anything
@settings(max_examples=20)
def test_who_comes_alone_decides(rule, seed, clients):
    _, deltas, _ = cohort(seed, 1)
    torch.testing.assert_close(merged(rule, deltas, torch.ones(1), **WHOLE.get(rule, {})), deltas[0])


@pytest.mark.parametrize("rule", sorted(set(MERGING_RULES) - SHAPED - ADDED_UP - CUT))
@anything
@settings(max_examples=20)
def test_where_all_send_the_same_it_is_done(rule, seed, clients):
    _, deltas, p = cohort(seed, clients)
    deltas[:] = deltas[0]
    torch.testing.assert_close(merged(rule, deltas, p, **WHOLE.get(rule, {})), deltas[0])


@pytest.mark.parametrize("rule", sorted(set(MERGING_RULES) - FIXED))
@anything
@settings(max_examples=20)
def test_twice_the_updates_make_twice_the_step(rule, seed, clients):
    _, deltas, p = cohort(seed, clients)
    torch.testing.assert_close(merged(rule, 2 * deltas, p), 2 * merged(rule, deltas, p))


@pytest.mark.parametrize("rule", sorted(MERGING_RULES))
@anything
@settings(max_examples=20)
def test_where_nothing_moved_nothing_moves(rule, seed, clients):
    """Some of a round's clients, or all, may not have changed a layer."""
    _, deltas, p = cohort(seed, clients)
    deltas[:, :4] = 0
    deltas[0] = 0
    step = merged(rule, deltas, p)
    assert not step[:4].any()
    assert torch.isfinite(step).all()


def test_lambda_is_of_the_sum_by_hand():
    deltas = torch.tensor([[1.0] * 12, [3.0] * 12])
    step = merged("task_arithmetic", deltas, torch.tensor([0.25, 0.75]), task_scale=0.75)
    torch.testing.assert_close(step, torch.tensor([0.75 * 2 * 2.5] * 9 + [2.5] * 3))


def test_what_dare_keeps_makes_up_for_what_it_drops():
    """A weight is 0 or 4 times as large, on average as it was; each client draws anew in each round."""
    _, deltas, p = cohort(1, 3)
    alone = torch.stack([merged("dare", deltas[:1], torch.ones(1), round=r, dare_keep=0.25) for r in range(4000)])
    ratio = alone[:, :9] / deltas[0, :9]
    assert set(ratio.unique().tolist()) == {0.0, 4.0}
    assert (alone[:, 9:] == deltas[0, 9:]).all()
    torch.testing.assert_close(ratio.mean(0), torch.ones(9, dtype=ratio.dtype), rtol=0, atol=5 * (3 / 4000) ** 0.5)
    drawn = [
        merged("dare", deltas, p, seed=s, round=r, dare_keep=0.5).tolist() for s, r in ((0, 1), (0, 2), (1, 1), (0, 1))
    ]
    assert drawn[0] == drawn[3]
    assert len({tuple(step) for step in drawn}) == 3
    same = merged("dare", deltas[[0, 0]], p[:2], dare_keep=0.5) / deltas[0]
    assert len(set(same[:9].tolist())) > 2  # two clients with one update drop other parts of it


def test_della_keeps_what_is_large_more_often_by_hand():
    """The matrix's rows are 1 -2 and 4 3, the others 7 5 6 and -9 8: chances of 0.3 to 0.7 by the rank in each."""
    delta = torch.tensor([1.0, -2, 4, 3, 7, 5, 6, -9, 8, 1, 1, 1])
    chance = torch.tensor([0.3, 0.7, 0.7, 0.3, 0.7, 0.3, 0.5, 0.7, 0.3])
    rounds = [
        merged("della", delta[None], torch.ones(1), round=r, della_keep=0.5, della_spread=0.4) for r in range(4000)
    ]
    kept = torch.stack(rounds)[:, :9]
    torch.testing.assert_close(torch.where(kept != 0, delta[:9] / chance, kept), kept)
    torch.testing.assert_close((kept != 0).double().mean(0), chance.double(), rtol=0, atol=5 * 0.5 / 4000**0.5)


def test_della_elects_signs_by_hand():
    deltas = torch.tensor([[4.0] * 12, [-1.0] * 12, [2.0] * 12])
    step = merged("della", deltas, torch.ones(3) / 3, della_keep=1.0, della_spread=0.0)
    torch.testing.assert_close(step, torch.tensor([3.0] * 9 + [5 / 3] * 3))


def test_breadcrumbs_by_hand():
    """Half of each layer counts: of four, two, but not the largest; of three and of two, none is an outlier."""
    delta = torch.tensor([1.0, -9, 4, -3, 5, 7, 6, -9, 8, 1, 1, 1])
    how = {"breadcrumbs_keep": 0.5, "breadcrumbs_outliers": 0.25, "breadcrumbs_scale": 2.0}
    step = merged("breadcrumbs", delta[None], torch.ones(1), **how)
    assert step.tolist() == [0, 0, 8, -6, 0, 14, 12, -18, 0, 1, 1, 1]


def test_model_stock_by_hand():
    """Cosines of 0.6 in the first layer, 0 in the second, -1 in the third; weights 1 to 3."""
    deltas = torch.zeros(2, 12)
    deltas[0, [0, 4, 7, 9]] = 1.0
    deltas[1, [0, 1, 5, 7, 9]] = torch.tensor([3.0, 4.0, 1.0, -1.0, 5.0])
    step = merged("model_stock", deltas, torch.tensor([0.25, 0.75]))
    t = 2 * 0.6 / (1 + 0.6)
    expected = torch.zeros(12)
    expected[[0, 1, 9]] = torch.tensor([t * 2.5, t * 3, 4.0])
    torch.testing.assert_close(step, expected)


def test_model_stock_of_three_takes_the_mean_of_the_cosines():
    deltas = torch.zeros(3, 12)
    deltas[0, 0] = deltas[1, 0] = deltas[2, 1] = 1.0  # cosines 1, 0, 0
    step = merged("model_stock", deltas, torch.ones(3) / 3)
    assert step[0].item() == pytest.approx(3 / 3 / (1 + 2 / 3) * 2 / 3)


def test_consensus_by_hand():
    """The mean is 2: of half its size or more, changes of 4 and 2 are near enough, and one of 0 is not."""
    deltas = torch.tensor([[4.0] * 12, [0.0] * 12, [2.0] * 12])
    deltas[:, 0] = torch.tensor([6.0, 0, 0])  # |6| is near enough to 2, the others are not: it serves one
    deltas[:, 1] = torch.tensor([3.0, -1, 4])  # |-1| < 0.9 * 3
    step = merged("consensus", deltas, torch.ones(3) / 3, consensus_clients=2, consensus_lambda=0.9)
    torch.testing.assert_close(step, torch.tensor([0.0] + [2.0] * 11))
    every = merged("consensus", deltas, torch.ones(3) / 3, consensus_clients=3, consensus_lambda=0.9)
    torch.testing.assert_close(every, torch.tensor([0.0] * 9 + [2.0] * 3))


def test_emr_by_hand():
    """The sign is that of the mean by weight, the size the largest of those that have it."""
    deltas = torch.tensor([[4.0] * 12, [1.0] * 12, [-3.0] * 12])
    assert merged("emr", deltas, torch.ones(3) / 3).tolist() == pytest.approx([4.0] * 9 + [2 / 3] * 3)
    step = merged("emr", deltas, torch.tensor([0.1, 0.1, 0.8]))
    torch.testing.assert_close(step, torch.tensor([-3.0] * 9 + [-1.9] * 3))


def test_iso_c_by_hand():
    """The mean of the matrix is diag(3, 1), of singular values 3 and 1, so that both become 2, half of it by alpha."""
    deltas = torch.tensor([[6.0, 1, -1, 0, 1, 1, 1, 3, 4, 1, 1, 1], [0, -1, 1, 2, 1, 1, 1, 3, 4, 3, 1, 1]])
    step = merged("iso_c", deltas, torch.ones(2) / 2, iso_scale=0.5)
    torch.testing.assert_close(step, torch.tensor([1.0, 0, 0, 1, 1, 1, 1, 1.5, 2, 2, 1, 1]))


def test_iso_c_leaves_still_what_nobody_moved():
    """The matrix has rank 1: its other direction stays out of it."""
    deltas = torch.tensor([[3.0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]])
    torch.testing.assert_close(merged("iso_c", deltas, torch.ones(1)), deltas[0])


def test_tsv_m_adds_up_orthogonal_updates_and_counts_equal_ones_once():
    """diag(3, 0) and diag(0, 5) are added up. Equal ones of rank 1 are one; the vector of three is averaged."""
    deltas = torch.tensor([[3.0, 0, 0, 0, 1, 1, 1, 3, 4, 1, 1, 1], [0, 0, 0, 5, 3, 1, 1, 3, 4, 1, 1, 1]])
    step = merged("tsv_m", deltas, torch.ones(2) / 2)
    torch.testing.assert_close(step, torch.tensor([3.0, 0, 0, 5, 2, 1, 1, 3, 4, 1, 1, 1]))
    torch.testing.assert_close(merged("tsv_m", deltas[[0, 0]], torch.ones(2) / 2), deltas[0])
    weighted = merged("tsv_m", deltas, torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(weighted[:4], torch.tensor([1.5, 0, 0, 7.5]))


def test_directions_that_are_but_rounding_have_no_part_in_tsv_m():
    """Two clients of rank 1 in a matrix of 4 x 4, in which each may have two directions: the sum of both is there."""
    g = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(4, 4, generator=g, dtype=torch.float64))[0] for _ in range(2))
    deltas = torch.stack([(left[:, [i]] @ right[:, [i]].T).flatten() for i in range(2)])
    layout = Layout(("a",), (16,), 16, 16, shapes=((4, 4),))
    aggregate = Aggregate([Arrival(i, 1, 1, 1) for i in range(2)], deltas=deltas.clone())
    torch.testing.assert_close(MERGING_RULES["tsv_m"](aggregate, layout, tsv_scale=1.0), deltas.sum(0))


def test_orthogonal_columns_are_those_next_to_them():
    columns = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = orthogonal(columns)
    torch.testing.assert_close(found.T @ found, torch.eye(3, dtype=torch.float64))
    product = found.T @ columns  # symmetric and positive, as a polar decomposition's
    torch.testing.assert_close(product, product.T)
    assert (torch.linalg.eigvalsh(product) > 0).all()
    twice = torch.cat([columns, columns], 1)
    torch.testing.assert_close(orthogonal(twice), torch.cat([found, found], 1) / 2**0.5)
    assert present(torch.tensor([[1.0, 1e-9], [0.0, 0.0]]), (2, 2, 2)).tolist() == [[True, False], [False, False]]
