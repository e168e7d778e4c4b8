"""The largest entries of a vector against a sort, and how often they are looked for."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmerge.compressors import largest
from fedmerge.compressors.largest import top_k_mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@given(values=st.lists(st.integers(-50, 50), min_size=1, max_size=40), keep=st.floats(0.01, 1), cut=st.integers(0, 40))
def test_top_k_keeps_exactly_the_share_of_each_block_and_the_largest(values, keep, cut, dtype):
    delta = torch.tensor(values, dtype=dtype)
    cut = min(cut, len(values) - 1)
    sizes = [cut, len(values) - cut] if cut else [len(values)]
    mask = top_k_mask(delta, keep, sizes)
    for part, chosen in zip(delta.split(sizes), mask.split(sizes), strict=True):
        k = max(1, round(keep * len(part)))
        assert set(chosen.nonzero().view(-1).tolist()) == largest_of(part.tolist(), k)


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
@pytest.mark.parametrize("n", [100, 4096, 20_001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_largest_of_many_are_those_of_a_sort(kind, n, dtype, monkeypatch):
    g = torch.Generator().manual_seed(n)
    values = spread(kind, n, g).to(dtype)  # only float32 goes by a sample, and only on the CPU
    assert 100 < largest.LARGE <= 4096
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
    monkeypatch.setattr(largest, "PLACES", largest.PLACES * 0.1)  # of the first tenth only
    values, expected = values.sort().values, expected[values.argsort()]
    assert torch.equal(top_k_mask(values, 0.1, (20_000,)), expected)
    assert len(passes) == 3
