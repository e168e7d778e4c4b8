"""Floats with packed exponents: bit for bit, the size by hand, and damaged bytes."""

from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmerge.wire.bits import BLOCK, CodeError, Reader
from fedmerge.wire.float_coding import decode_floats, encode_floats, float_bytes


@given(seed=st.integers(0, 10**6), n=st.integers(0, 3 * BLOCK), spread=st.floats(0, 30), zeros=st.booleans())
@settings(max_examples=50)
def test_floats_come_back_bit_for_bit(seed, n, spread, zeros):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(n) * 2.0 ** rng.uniform(-spread, spread, n)).astype(np.float32)
    if zeros:
        x[rng.random(n) < 0.1] = -0.0
    code = b"".join(encode_floats(x))
    assert len(code) == float_bytes(torch.from_numpy(x))
    assert decode_floats(Reader(code), n).tobytes() == x.tobytes()
    blocks = [x[i : i + BLOCK].view(np.uint32) >> 23 & 255 for i in range(0, n, BLOCK)]
    widths = [int(block.max() - block.min()).bit_length() for block in blocks]
    assert len(code) == sum(
        2 + 3 * len(b) + (len(b) if w == 8 else w * -(-len(b) // 8)) for b, w in zip(blocks, widths, strict=True)
    )


def test_odd_floats_come_back_too():
    x = np.array([np.inf, -np.inf, np.nan, 1e-45, -1e-45, 0, -0.0, 3.4e38], np.float32)
    assert decode_floats(Reader(b"".join(encode_floats(x))), 8).tobytes() == x.tobytes()


@pytest.mark.parametrize(
    ("code", "why"),
    [("00 09 00000000", "too wide"), ("ff 01 80 0000 00", "out of range"), ("7f 01 80 0000", "too short")],
)
def test_floats_that_were_not_written_here_are_refused(code, why):
    with pytest.raises(CodeError, match=why):
        decode_floats(Reader(bytes.fromhex(code)), 1)


@given(data=st.binary(max_size=60), n=st.integers(0, 3000))
def test_any_bytes_are_read_or_refused(data, n):
    with suppress(CodeError):
        decode_floats(Reader(data), n)


@pytest.mark.gpu
def test_a_gpu_counts_what_is_written():
    x = torch.randn(100_001)
    assert float_bytes(x.cuda()) == len(b"".join(encode_floats(x.numpy())))
