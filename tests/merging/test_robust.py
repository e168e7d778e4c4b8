"""Merges that liars cannot spoil: by hand, and against slow twins."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmerge.merging import Aggregate, Arrival
from fedmerge.networks.flat_model import Layout
from fedmerge.registry import MERGING_RULES

LAYOUT = Layout(names=("a",), sizes=(2,), n_trainable=2, dim=3)


def step(rule, deltas, p=None, **options):
    """Return the step [dim] that a rule makes of deltas [clients, dim] with the weights p."""
    deltas = torch.as_tensor(deltas, dtype=torch.float32)
    weights = [1.0] * len(deltas) if p is None else p
    arrived = [Arrival(i, 1, 1, weight) for i, weight in enumerate(weights)]
    how = {name: default for name, (default, *_) in MERGING_RULES[rule].registered.get("options", {}).items()}
    aggregate = Aggregate(arrived, {"update": deltas.mean(0)}, deltas=deltas)
    return MERGING_RULES[rule](aggregate, layout=LAYOUT, **how | options)


def merged(rule, deltas, p=None, **options):
    return step(rule, deltas, p, **options) + torch.tensor([10.0, 20.0, 30.0])


def test_the_median_by_hand():
    odd = [[1, 5, 0], [2, -4, 0], [900, 6, 1]]
    assert merged("median", odd).tolist() == [12, 25, 30]
    assert merged("median", [*odd, [3, 8, 1]]).tolist() == [12.5, 25.5, 30.5]


def test_the_trimmed_mean_by_hand():
    deltas = [[1, 0, 0], [2, 0, 0], [3, 9, 0], [4, 1, 0], [900, 2, 5]]
    assert merged("trimmed_mean", deltas, trim=0.2).tolist() == [13, 21, 30]
    assert merged("trimmed_mean", deltas, trim=0.45).tolist() == [13, 21, 30]  # all but the middle one
    assert merged("trimmed_mean", deltas, trim=0.0).tolist() == [192, 22.399999618530273, 31]


def test_multi_krum_by_hand():
    """f = 1 of 5: the score is over the two nearest. The lonely (9, 9, 9) is left out, the rest averaged by weight."""
    deltas = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [9, 9, 9], [1, 1, 0]]
    assert merged("krum", deltas, liars=0.2).tolist() == [10.5, 20.5, 30]
    weighted = merged("krum", deltas, [0.1, 0.3, 0.1, 0.4, 0.1], liars=0.2)
    assert torch.allclose(weighted, torch.tensor([10 + 0.4 / 0.6, 20 + 0.2 / 0.6, 30]))


@given(seed=st.integers(0, 10**6), n=st.integers(3, 9))
@settings(max_examples=30)
def test_robust_merges_equal_slow_twins(seed, n):
    deltas = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    columns = [sorted(column) for column in deltas.T.tolist()]
    k = math.ceil(0.2 * n)
    median = [(column[(n - 1) // 2] + column[n // 2]) / 2 for column in columns]
    trimmed = [sum(column[k : n - k]) / (n - 2 * k) for column in columns]
    scores, f = [], k
    while f and 2 * f + 2 >= n:
        f -= 1
    for i in range(n):
        others = [deltas[j, :2].tolist() for j in range(n) if j != i]  # the third is a buffer
        apart = sorted(
            sum((a - b) ** 2 for a, b in zip(deltas[i, :2].tolist(), other, strict=True)) for other in others
        )
        scores.append(sum(apart[: max(1, n - f - 2)]))
    chosen = sorted(range(n), key=scores.__getitem__)[: n - f]
    krum = [sum(deltas[i][c].item() for i in chosen) / len(chosen) for c in range(3)]
    for rule, twin in (("median", median), ("trimmed_mean", trimmed), ("krum", krum)):
        assert torch.allclose(step(rule, deltas), torch.tensor(twin), atol=1e-5)


@pytest.mark.parametrize("rule", ["median", "trimmed_mean", "krum"])
def test_a_robust_merge_stays_among_the_honest_whatever_one_of_five_sends(rule):
    honest = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    for lie in (1e6, -1e6, 1e30):
        deltas = torch.cat([honest, torch.full((1, 3), lie)])
        found = step(rule, deltas)
        assert (found >= honest.min(0).values).all()
        assert (found <= honest.max(0).values).all()
        assert step("mean", deltas).abs().max() > 1e5
