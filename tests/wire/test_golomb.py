"""Golomb's code against a slow reading of its format, against the entropy, and against damaged bytes."""

import math
import struct
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmerge.wire import golomb
from fedmerge.wire.bits import BLOCK, CHUNK, CodeError


def numbers(seed, n, mean, zeros=False):
    """Geometric numbers int64 [n] of a mean; of every second block all are zero if `zeros`."""
    x = np.random.default_rng(seed).geometric(1 / (1 + mean), n) - 1
    if zeros:
        x[np.arange(n) // BLOCK % 2 == 0] = 0
    return x.clip(max=golomb.LARGEST)


def slow_decode(data, n):
    """Read the format bit by bit, as the module's docstring has it."""
    x, at, whole = [0] * n, 0, n - n % BLOCK

    def bits(count):
        nonlocal at
        size = -(-count // 8)
        text = "".join(f"{byte:08b}" for byte in data[at : at + size])
        at += size
        assert set(text[count:]) <= {"0"}
        return text[:count]

    pieces = [(i, min(i + CHUNK * BLOCK, whole), BLOCK) for i in range(0, whole, CHUNK * BLOCK)]
    for begin, end, size in [*pieces, *([(whole, n, n - whole)] if n > whole else [])]:
        parameters = data[at : at + (end - begin) // size]
        at += len(parameters)
        for parameter in sorted(set(parameters) - {0}):
            divisor = int(golomb.DIVISORS[parameter - 1])
            places = [p for i, q in enumerate(parameters) if q == parameter for p in range(size * i, size * (i + 1))]
            (length,) = struct.unpack_from("<I", data, at)
            at += 4
            ends = bits(length).split("1")
            assert ends.pop() == ""
            quotients = [len(zeros) for zeros in ends]
            j, trits = divisor.bit_length() - 1, [0] * len(places)
            if divisor % 3 == 0 and divisor > 1:
                j -= 1
                count = -(-len(places) // 5)
                trits = [byte // 3**i % 3 for i in range(5) for byte in data[at : at + count]]
                at += count
            low = [0] * len(places)
            planes = j // 8
            for plane in range(planes):
                low = [value | byte << 8 * plane for value, byte in zip(low, data[at : at + len(places)], strict=True)]
                at += len(places)
            for plane in range(8 * planes, j):
                low = [v | int(bit) << plane for v, bit in zip(low, bits(len(places)), strict=True)]
            for i, place in enumerate(places):
                high = 3 * quotients[i] + trits[i] if divisor % 3 == 0 else quotients[i]
                x[begin + place] = (high << j) + low[i]
    return x, at


@pytest.mark.parametrize(
    ("x", "code"),
    [
        ([5, 0, 3], "02 06000000 34 a0"),  # mean 2.7: divisor 2; 001 1 01; 1 0 1
        ([4, 4], "03 04000000 50 04"),  # mean 4: divisor 3; 01 01; 1 + 3 * 1
        ([9, 7], "05 04000000 50 01 c0"),  # mean 8: divisor 6; 01 01; 9 >> 1 = 3 + 1, 7 >> 1 = 3 + 0; 1 1
        ([0, 0, 0], "00"),
        ([], ""),
    ],
)
def test_by_hand(x, code):
    assert golomb.encode(np.array(x, np.int64)) == bytes.fromhex(code)


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(0, 3 * BLOCK),
    log_mean=st.floats(-3, 20),
    zeros=st.booleans(),
    tail=st.integers(0, 3),
)
def test_what_is_written_is_read_and_its_size_known(seed, n, log_mean, zeros, tail):
    x = numbers(seed, n, 2**log_mean, zeros)
    code = golomb.encode(x)
    read, length = golomb.decode(code + bytes(tail), n)
    assert (read.tolist(), length) == (x.tolist(), len(code))
    assert golomb.coded_bytes(torch.from_numpy(x)) == len(code)
    assert slow_decode(code, n) == (x.tolist(), len(code))


def test_many_chunks_of_mixed_divisors():
    n = 2 * CHUNK * BLOCK + 5 * BLOCK + 77
    x = np.concatenate([numbers(i, 30_000, mean) for i, mean in enumerate((0, 1.9, 5, 30, 2.1, 3000) * 3)])[:n]
    for values in (x.astype(np.uint32), x.astype(np.int64)):
        code = golomb.encode(values)
        assert golomb.decode(code, len(x))[0].tolist() == x.tolist()
        assert golomb.coded_bytes(torch.from_numpy(x)) == len(code)
    assert slow_decode(code, len(x))[0] == x.tolist()


def test_the_largest_number():
    x = np.array([golomb.LARGEST] * 3 + [0])
    assert golomb.decode(golomb.encode(x), 4)[0].tolist() == x.tolist()


@pytest.mark.parametrize("large", [2**16 - 1, 2**16])
def test_numbers_around_two_bytes(large):
    x = np.array([large] + [0] * 2 * BLOCK)
    assert golomb.decode(golomb.encode(x), len(x))[0].tolist() == x.tolist()


@pytest.mark.parametrize("density", [0.05, 0.3])
def test_places_are_written_as_their_gaps(density):
    mask = np.random.default_rng(0).random(int(2 * CHUNK * BLOCK / density)) < density
    places = np.flatnonzero(mask)
    code = golomb.encode_places(places)
    assert code == golomb.encode(gaps(mask))
    read, length = golomb.decode_places(code + b"x", len(places), len(mask))
    assert (read.tolist(), length) == (places.tolist(), len(code))
    with pytest.raises(CodeError, match="out of range"):
        golomb.decode_places(code, len(places), places[-1])


def entropy_bytes(mask):
    q = mask.mean()
    return len(mask) * -(q * math.log2(q) + (1 - q) * math.log2(1 - q)) / 8


def gaps(mask):
    return np.diff(np.flatnonzero(mask), prepend=-1) - 1


@pytest.mark.parametrize("density", np.geomspace(0.001, 0.3, 12).tolist())
def test_a_random_mask_costs_at_most_three_percent_more_than_its_entropy(density):
    mask = np.random.default_rng(0).random(3_000_000) < density
    assert len(golomb.encode(gaps(mask))) <= 1.03 * entropy_bytes(mask)


def test_a_mask_whose_layers_differ_costs_less_than_the_entropy_of_its_mean_density():
    rng = np.random.default_rng(0)
    mask = np.concatenate([rng.random(500_000) < q for q in (0.001, 0.05, 0.01, 0.2)])
    assert len(golomb.encode(gaps(mask))) < 0.85 * entropy_bytes(mask)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("", "too short"),
        ("02 06000000 34", "too short"),
        ("02 ffffffff 34 a0", "too short"),
        ("ff 06000000 34 a0", "unknown divisor"),
        ("02 08000000 34 a0", "one end a number"),  # bits behind the last end
        ("02 06000000 30 a0", "one end a number"),  # two numbers only
        ("03 06000000 34 f3", "not five trits"),
        (f"{len(golomb.DIVISORS):02x} 12000000 0001c0 00000000000000000000", "too large"),
    ],
)
def test_what_was_not_written_here_is_refused(code, why):
    with pytest.raises(CodeError, match=why):
        golomb.decode(bytes.fromhex(code), 3)


@given(data=st.binary(max_size=60), n=st.integers(0, 3000))
def test_any_bytes_are_read_or_refused(data, n):
    with suppress(CodeError):
        golomb.decode(data, n)


@pytest.mark.gpu
def test_a_gpu_counts_what_is_written():
    for mean in (0.5, 3.5, 1000):
        x = numbers(0, 100_000, mean)
        assert golomb.coded_bytes(torch.from_numpy(x).cuda()) == len(golomb.encode(x))
