"""Values in fewer bits: against a slow twin, their mean over many roundings, and the limits of their range."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmerge import wire
from fedmerge.client_update import ClientUpdate
from fedmerge.config.kinds import KINDS, VALUE_BITS
from fedmerge.config.parser import build_parser
from fedmerge.wire import quantization
from fedmerge.wire.bits import BLOCK


def normal(seed, n, scale=1.0):
    """Return normal values [n] of a seed."""
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) * scale


def test_the_command_line_offers_the_formats_there_are():
    assert tuple(wire.FORMATS) == (*VALUE_BITS, 0)  # which is for masks
    assert all(bits == cls.bits for bits, cls in wire.FORMATS.items())
    assert f"--value_bits {{{','.join(map(str, VALUE_BITS))}}}" in build_parser().format_help()
    assert [KINDS["bits"](str(bits)) for bits in VALUE_BITS] == list(VALUE_BITS)


def test_another_format_is_one_class(monkeypatch):
    """Of 3 bits, a sign and four levels: nothing else has to know of it."""

    class Levels3(quantization._Levels):
        bits = 3

    monkeypatch.setitem(wire.FORMATS, 3, Levels3)
    values = normal(0, 3000)
    message = wire.pack(ClientUpdate(values), 3000, 3, torch.Generator().manual_seed(0))
    size, arrived = wire.transmit(message, real=True)
    assert size == wire.payload_bytes(message) <= 32 + 3 * 8 + 3 * 3000 / 8
    assert type(arrived.weights) is Levels3
    decoded = arrived.unpack(torch.empty(3000))
    assert torch.equal(decoded, message.unpack(torch.empty(3000)))
    assert [len(block.unique()) for block in decoded.split(BLOCK)] == [8, 8, 8]


def rounded(values, bits, seed=0):
    return wire.FORMATS[bits].quantise(values, torch.Generator().manual_seed(seed)).dequantise()


def twin(values, bits, draws):
    """Value by value, as the docstring has it."""
    out, levels = [], 2 ** (bits - 1) - 1
    for begin in range(0, len(values), BLOCK):
        block, u = values[begin : begin + BLOCK].double(), draws[begin : begin + BLOCK].tolist()
        sizes = block.abs().tolist()
        low, high = min(sizes), max(sizes)
        for size, negative, x in zip(sizes, (block < 0).tolist(), u, strict=True):
            if bits == 1:
                size = sum(sizes) / len(sizes)
            elif high > low:
                size = low + math.floor((size - low) / (high - low) * levels + x) * (high - low) / levels
            out.append(-size if negative else size)
    return torch.tensor(out)


@pytest.mark.parametrize("bits", [8, 4, 1])
def test_rounding_equals_its_twin(bits):
    values = normal(3, 2500)
    draws = torch.rand(2500, generator=torch.Generator().manual_seed(0))
    close = torch.isclose(rounded(values, bits), twin(values, bits, draws), rtol=1e-4)
    assert close.float().mean() > 0.998  # float32 and float64 may differ in the last bit before a floor


@pytest.mark.parametrize("bits", [8, 4])
def test_the_mean_of_many_roundings_is_the_value(bits):
    values = normal(4, 600)
    many = torch.stack([rounded(values, bits, seed) for seed in range(2000)])
    step = (values.abs().max() - values.abs().min()) / (2 ** (bits - 1) - 1)
    assert (many - values).abs().max() <= step * 1.001
    assert ((many.mean(0) - values).abs() < 5 * step / 2 / 2000**0.5).all()
    assert torch.equal(many.sign()[0], values.sign())


def test_one_bit_is_the_sign_and_the_mean_size_and_zeros_go_either_way():
    values = torch.tensor([1.0, -3, 2, 0, 0, 0, 0, 0, 0])
    many = torch.stack([rounded(values, 1, seed) for seed in range(400)])
    assert torch.allclose(many.abs(), torch.tensor(6 / 9))
    assert (many[:, :3].sign() == values[:3].sign()).all()
    assert (many[:, 3:].mean(0).abs() < 0.2).all()


def test_two_bits_are_the_sign_and_the_nearer_of_two_means_by_hand():
    """1, 2, 3 and 10: their mean is 4, so that the two sizes are 2 and 10, and the bound between them stays 6."""
    assert torch.equal(rounded(torch.tensor([1.0, -2, 3, -10]), 2), torch.tensor([2.0, -2, 2, -10]))
    assert torch.equal(rounded(torch.tensor([5.0, -5, 5]), 2), torch.tensor([5.0, -5, 5]))
    assert torch.equal(rounded(torch.tensor([0.0, 0, 7, -9]), 2).abs(), torch.tensor([0.0, 0, 8, 8]))


@pytest.mark.parametrize("n", [5, 1024, 2500])
def test_two_bits_are_nearer_than_one_and_no_other_two_sizes_are_much_nearer(n):
    """The bounds between all pairs of neighbours in size, tried one by one, block by block."""
    values = normal(9, n)
    rest = [((rounded(values, bits) - values) ** 2).split(BLOCK) for bits in (2, 1)]
    for block, two, one in zip(values.abs().split(BLOCK), *rest, strict=True):
        size = block.sort().values.double()
        best = min(sum(((part - part.mean()) ** 2).sum() for part in (size[:k], size[k:])) for k in range(1, len(size)))
        assert best * 0.999 <= two.sum() <= 1.02 * best + 1e-12
        assert two.sum() < one.sum()


@pytest.mark.parametrize("bits", [2, 1])
def test_few_bits_of_huge_values_do_not_overflow(bits):
    assert torch.allclose(rounded(torch.full((1000,), 1e36), bits), torch.tensor(1e36))


def test_blocks_have_their_own_scale():
    values = torch.cat([torch.full((BLOCK,), 100.0), torch.tensor([1e-3, -3e-3])])
    for bits in (8, 4, 2, 1):
        assert torch.equal(rounded(values, bits)[:BLOCK], values[:BLOCK])
        assert rounded(values, bits)[BLOCK:].abs().max() <= 3e-3


@given(seed=st.integers(0, 10**6), power=st.integers(-28, 30))
def test_sixteen_bits_keep_eleven_of_the_mantissa_at_any_scale(seed, power):
    values = normal(seed, 500, 10.0**power)
    large = values.abs() > values.abs().max() / 2**20
    assert ((rounded(values, 16) - values).abs() <= values.abs() / 2**11)[large].all()


@pytest.mark.parametrize("bits", wire.FORMATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bits, bad):
    values = torch.ones(3)
    values[1] = bad
    assert not torch.isfinite(rounded(values, bits)).all()


@pytest.mark.parametrize("bits", wire.FORMATS)
def test_zeros_and_nothing_at_all(bits):
    assert torch.equal(rounded(torch.zeros(5), bits), torch.zeros(5))
    assert rounded(torch.zeros(0), bits).shape == (0,)


@pytest.mark.parametrize("n", [1, 1000, 123_457])
def test_one_number_for_all_is_that_number_to_the_last_bit(n):
    for value in (1.0, 0.1, -3e-30):
        assert (rounded(torch.full((n,), value), 0) == torch.tensor(value)).all()
