"""The wire format: by hand, against slow twins, and against damaged and hostile bytes."""

import dataclasses
import math
import struct
import tracemalloc
import zlib

import plain_decoder
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmerge import wire
from fedmerge.client_update import ClientUpdate
from fedmerge.randomness import generator
from fedmerge.wire import message as wire_message
from fedmerge.wire.bits import BLOCK
from fedmerge.wire.message import PayloadError

N, BUFFERS = 3000, 5


def draw(seed, n=N, buffers=BUFFERS, share=0.1, scale=1.0):
    """Return a random ClientUpdate that keeps about `share` of n weights, or, if that is None, all, without a mask."""
    g = torch.Generator().manual_seed(seed)
    delta = torch.randn(n + buffers, generator=g) * scale
    if share is None:
        return ClientUpdate(delta)
    mask = torch.rand(n, generator=g) < share
    delta[:n] *= mask
    return ClientUpdate(delta, mask)


def same(a, b):
    """Whether two Messages, or parts of them, are equal in every bit, type and shape."""
    if torch.is_tensor(a) and torch.is_tensor(b):
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(same(value, getattr(b, name)) for name, value in vars(a).items())
    return a == b


def unpacked(message, dim=N + BUFFERS):
    return message.unpack(torch.full((dim,), torch.nan))


# --------------------------------------------------------------------------------------------------------------------
# Whole messages


def test_a_small_message_by_hand():
    """Weights 1 and 3 of four kept, as float32, and one buffer."""
    update = ClientUpdate(torch.tensor([0.0, 1.5, 0, -2.0, 7.0]), torch.tensor([False, True, False, True]))
    data = wire.encode(wire.pack(update, 4, 32, round=9, client=3))
    header = b"FSU" + bytes([2, 32, 1, 0, 0]) + struct.pack("<IIIIi", 4, 1, 2, 9, 3)
    body = bytes([0b01010000]) + struct.pack("<fff", 1.5, -2.0, 7.0)
    assert data == header + struct.pack("<I", zlib.crc32(header + body)) + body


@pytest.mark.parametrize("bits", wire.FORMATS)
@pytest.mark.parametrize(
    ("share", "n"), [(None, 3000), (0.003, 3000), (0.2, 3000), (0.7, 3000), (0.99, 3000), (0.97, 270_000)]
)
def test_what_the_docstrings_say_suffices_to_decode(bits, share, n):
    update = draw(bits, n=n, share=share)
    message = wire.pack(update, n, bits, generator(0, "x"), round=7, client=2)
    vector, round, client = plain_decoder.decode(wire.encode(message))
    assert (round, client) == (7, 2)
    expected = unpacked(message, n + BUFFERS)
    assert torch.allclose(torch.tensor(vector), expected, rtol=1e-6, atol=0)
    if bits == 32:
        assert torch.tensor(vector).equal(expected)


def test_dense_float32_is_four_bytes_a_number_and_shares_the_memory():
    update = draw(0, share=None)
    message = wire.pack(update, N, 32)
    assert wire.payload_bytes(message) == 32 + 4 * (N + BUFFERS)
    assert message.unpack(update.delta) is update.delta
    assert message.weights.data.data_ptr() == update.delta.data_ptr()


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 3 * BLOCK),
    buffers=st.integers(0, 9),
    share=st.sampled_from([None, 0.0, 0.001, 0.01, 0.2, 0.5, 0.8, 0.99, 1.0]),
    bits=st.sampled_from(list(wire.FORMATS)),
    power=st.integers(-30, 30),
)
def test_what_is_written_is_read_and_its_size_known(seed, n, buffers, share, bits, power):
    update = draw(seed, n, buffers, share, 10.0**power)
    message = wire.pack(update, n, bits, torch.Generator().manual_seed(seed), round=seed, client=seed % 7 - 1)
    data = wire.encode(message)
    assert len(data) == wire.payload_bytes(message)
    read = wire.decode(data, n, buffers)
    assert same(read, message)
    assert same(unpacked(read, n + buffers), unpacked(message, n + buffers))
    assert wire.transmit(message, real=True)[0] == wire.transmit(message, real=False)[0] == len(data)
    if bits == 32:
        assert torch.equal(unpacked(read, n + buffers), update.delta)


def test_real_bytes_are_really_read(monkeypatch):
    message = wire.pack(draw(8), N, 8, torch.Generator())
    size, arrived = wire.transmit(message, real=True)
    assert arrived is not message
    assert wire.transmit(message, real=False) == (size, message)
    write = wire.encode
    monkeypatch.setattr(wire_message, "encode", lambda message: write(message)[:-1])
    with pytest.raises(PayloadError):
        wire.transmit(message, real=True)


def test_a_whole_model_by_hand():
    assert wire.dense_bytes(N + BUFFERS) == 32 + 4 * (N + BUFFERS)


@pytest.mark.parametrize("bits", wire.FORMATS)
def test_buffers_are_never_rounded(bits):
    """A rounded change of a variance that nearly vanishes would leave it negative."""
    update = draw(9)
    assert torch.equal(unpacked(wire.pack(update, N, bits, torch.Generator()))[N:], update.delta[N:])


@pytest.mark.parametrize("bits", wire.FORMATS)
def test_what_follows_the_weights_may_be_any_number_of_vectors(bits):
    """A model's buffers and, behind them, what is twice as long: all of it travels whole, at four bytes a number."""
    update, longer = draw(10), torch.randn(2 * BUFFERS, generator=torch.Generator().manual_seed(1))
    alone, more = (
        wire.pack(ClientUpdate(delta, update.mask), N, bits, generator(0, "x"))
        for delta in (update.delta, torch.cat([update.delta, longer]))
    )
    size, arrived = wire.transmit(more, real=True)
    assert size == wire.payload_bytes(alone) + 4 * 2 * BUFFERS
    vector = unpacked(arrived, N + 3 * BUFFERS)
    assert torch.equal(vector[: N + BUFFERS], unpacked(alone))
    assert torch.equal(vector[N + BUFFERS :], longer)
    with pytest.raises(PayloadError, match=f"{N} weights and {3 * BUFFERS} buffers, the model {N} and {BUFFERS}"):
        wire.decode(wire.encode(more), N, BUFFERS)


@pytest.mark.parametrize("bits", wire.FORMATS)
@pytest.mark.parametrize("share", [None, 0.1])
def test_the_beginning_of_what_follows_the_weights_may_be_left_out(bits, share):
    """It is 0 where it arrives, costs nothing, and may be missing only as a whole, where that is said beforehand."""
    update = draw(11, buffers=BUFFERS + 2, share=share)
    whole, less = (wire.pack(update, N, bits, generator(0, "x"), skip=skip) for skip in (0, BUFFERS))
    data = wire.encode(less)
    assert len(data) == wire.payload_bytes(less) == wire.payload_bytes(whole) - 4 * BUFFERS
    expected = unpacked(whole, N + BUFFERS + 2)
    expected[N : N + BUFFERS] = 0
    for read in (less, wire.decode(data, N, BUFFERS + 2, may_skip=BUFFERS), wire.transmit(less, real=True)[1]):
        assert torch.equal(unpacked(read, N + BUFFERS + 2), expected)
    read = wire.decode(wire.encode(whole), N, BUFFERS + 2, may_skip=BUFFERS)
    assert torch.equal(*(unpacked(message, N + BUFFERS + 2) for message in (read, whole)))
    for may_skip in (0, BUFFERS - 1, BUFFERS + 1):
        with pytest.raises(PayloadError, match="2 buffers, the model"):
            wire.decode(data, N, BUFFERS + 2, may_skip=may_skip)


def test_a_vector_too_short_or_too_long_for_its_message_is_no_vector_for_it():
    message = wire.pack(draw(10), N, 32)
    for dim in (N, N + BUFFERS - 1, N + 3 * BUFFERS):
        with pytest.raises(RuntimeError, match="size"):
            unpacked(message, dim)


def test_a_mask_that_keeps_all_is_none():
    update = draw(1, share=1.0)
    assert wire.pack(update, N, 32).mask is None
    assert wire.encode(wire.pack(update, N, 32)) == wire.encode(wire.pack(ClientUpdate(update.delta), N, 32))


@pytest.mark.parametrize(("share", "how"), [(None, 0), (0.5, 1), (0.1, 2), (0.9, 3)])
def test_positions_are_written_in_the_shortest_way(share, how):
    message = wire.pack(draw(2, 100_000, 0, share), 100_000, 32)
    assert wire.encode(message)[5] == how
    assert wire_message._positions_bytes(message)[1] == how


def test_layers_that_differ_in_density_cost_less_than_their_mean_density():
    g = torch.Generator().manual_seed(0)
    mask = torch.cat([torch.rand(300_000, generator=g) < q for q in (0.001, 0.05, 0.002)])
    size, _ = wire_message._positions_bytes(wire.pack(ClientUpdate(mask.float(), mask), len(mask), 32))
    q = mask.float().mean().item()
    assert 8 * size < 0.9 * len(mask) * -(q * math.log2(q) + (1 - q) * math.log2(1 - q))


def test_the_key_decides_the_rounding():
    messages = [wire.pack(draw(5), N, 4, generator(0, "rounding", round, 2)) for round in (1, 1, 2)]
    codes = list(map(wire.encode, messages))
    assert codes[0] == codes[1] != codes[2]


# --------------------------------------------------------------------------------------------------------------------
# Damaged and hostile bytes


def mended(data):
    """Return the bytes with the checksum that they ought to have."""
    data = bytes(data)
    return data[:28] + struct.pack("<I", zlib.crc32(data[32:], zlib.crc32(data[:28]))) + data[32:]


def message_bytes(bits=32, share=0.1):
    return wire.encode(wire.pack(draw(6, share=share), N, bits, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("bits", wire.FORMATS)
def test_every_truncation_and_every_flipped_bit_is_noticed(bits):
    data = message_bytes(bits)
    for length in range(0, len(data), 7):
        with pytest.raises(PayloadError):
            wire.decode(data[:length], N, BUFFERS)
        if length >= 32:
            with pytest.raises(PayloadError, match="not a message"):
                wire.decode(mended(data[:length]), N, BUFFERS)
    for at in range(0, len(data), 5):
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        with pytest.raises(PayloadError):
            wire.decode(flipped, N, BUFFERS)


def changed(at, kind, value, bits=32, share=0.1):
    data = bytearray(message_bytes(bits, share))
    struct.pack_into(kind, data, at, value)
    return mended(data)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (changed(0, "B", 0), "does not begin like one"),
        (changed(3, "B", 1), "of version 1, this program reads 2"),
        (changed(3, "B", 3), "of version 3, this program reads 2"),
        (changed(4, "B", 5), "unknown kind"),
        (changed(5, "B", 4), "unknown kind"),
        (changed(6, "B", 2), "unknown kind"),
        (changed(6, "B", 1, bits=16), "unknown kind"),
        (changed(8, "<I", N + 1), "3001 weights and 5 buffers, the model 3000 and 5"),
        (changed(12, "<I", 2**32 - 1), "weights and"),
        (changed(16, "<I", 2**32 - 1), "out of range"),
        (changed(16, "<I", N - 1), "not"),
        (changed(24, "<i", -2), "out of range"),
        (mended(message_bytes() + b"\0"), "bytes behind the end"),
        (changed(5, "B", 0), "positions are missing"),
        (changed(32, "<f", float("nan"), share=None), "not finite"),
        (changed(32, "<f", float("-inf"), share=None), "not finite"),
        (changed(32, "<i", 129, bits=16, share=None), "a scale"),
        (changed(32, "<i", -101, bits=16, share=None), "a scale"),
        (changed(36, "<H", 0x7C00, bits=16, share=None), "not finite"),
        (changed(32, "<f", -1.0, bits=8, share=None), "a scale"),
        (changed(36, "<f", 0.0, bits=8, share=None), "a scale"),
        (changed(36, "<f", float("inf"), bits=4, share=None), "not finite"),
        (changed(32, "<f", float("nan"), bits=1, share=None), "a scale"),
    ],
)
def test_a_message_that_nobody_wrote_is_refused(data, why):
    with pytest.raises(PayloadError, match=why) as caught:
        wire.decode(data, N, BUFFERS)
    assert "\n" not in str(caught.value)


def test_positions_out_of_range_and_bits_behind_the_end():
    mask = torch.zeros(N, dtype=torch.bool)
    mask[[5, N - 1]] = True
    data = wire.encode(wire.pack(ClientUpdate(torch.ones(N + BUFFERS), mask), N, 32))
    smaller = bytearray(data)
    struct.pack_into("<I", smaller, 8, N - 1)
    with pytest.raises(PayloadError, match="place out of range"):
        wire.decode(mended(smaller), N - 1, BUFFERS)
    odd = ClientUpdate(torch.ones(11), torch.arange(11) % 2 == 0)
    data = bytearray(wire.encode(wire.pack(odd, 11, 32)))
    assert data[5] == wire.BITMAP
    data[33] |= 1
    with pytest.raises(PayloadError, match="bits behind the end"):
        wire.decode(mended(data), 11, 0)
    data[33] ^= 1
    data[32] ^= 0b11000000
    wire.decode(mended(data), 11, 0)  # as many, elsewhere
    data[32] ^= 0b00100000
    with pytest.raises(PayloadError, match="number of weights"):
        wire.decode(mended(data), 11, 0)


def test_a_level_that_its_bits_cannot_hold():
    values = torch.cat([torch.zeros(990), torch.full((10,), 1.0)])
    data = bytearray(wire.encode(wire.pack(ClientUpdate(values), 1000, 8, torch.Generator())))
    assert data[6] == wire.CODED
    data[4] = 4
    with pytest.raises(PayloadError, match="level out of range"):
        wire.decode(mended(data), 1000, 0)


def test_absurd_lengths_allocate_nothing_absurd():
    unary = changed(33, "<I", 2**32 - 1)  # the gaps' unary part: 4 gigabits
    assert message_bytes()[5] == wire.KEPT
    tracemalloc.start()
    try:
        for data in (unary, changed(8, "<I", 2**32 - 1), changed(12, "<I", 2**32 - 1), changed(16, "<I", 2**32 - 1)):
            with pytest.raises(PayloadError):
                wire.decode(data, N, BUFFERS)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


@given(body=st.binary(max_size=200), bits=st.sampled_from(list(wire.FORMATS)), data=st.data())
def test_any_body_behind_a_good_header_is_read_or_refused(body, bits, data):
    n, buffers = data.draw(st.integers(1, 2 * BLOCK)), data.draw(st.integers(0, 3))
    how = [data.draw(st.integers(0, 3)), data.draw(st.integers(0, 1))]
    kept = data.draw(st.integers(0, min(n, 100)) | st.just(n))
    header = wire.HEADER.pack(wire.MAGIC, wire.VERSION, bits, *how, n, buffers, kept, 1, 0)
    try:
        message = wire.decode(mended(header + bytes(4) + body), n, buffers)
    except PayloadError:
        return
    assert torch.isfinite(unpacked(message, n + buffers)).all()
    assert wire.payload_bytes(message) == len(wire.encode(message))


@given(st.binary(max_size=100))
def test_any_bytes_are_refused(data):
    with pytest.raises(PayloadError):
        wire.decode(data, N, BUFFERS)


@pytest.mark.gpu
@pytest.mark.parametrize("bits", wire.FORMATS)
def test_a_gpu_packs_and_counts_what_a_cpu_does(bits):
    for share in (None, 0.01, 0.3, 0.9):
        update = draw(7, 100_000, 5, share)
        on_gpu = ClientUpdate(*(None if t is None else t.cuda() for t in update))
        messages = [wire.pack(u, 100_000, bits, torch.Generator().manual_seed(0)) for u in (update, on_gpu)]
        data = [wire.encode(m) for m in messages]
        assert [wire.payload_bytes(m) for m in messages] == list(map(len, data))
        a, b = (wire.decode(d, 100_000, 5).unpack(torch.empty(100_005)) for d in data)
        assert torch.allclose(a, b, rtol=1e-5, atol=(0 if bits > 8 else a.abs().max().item() / 2 ** (bits - 2)))
