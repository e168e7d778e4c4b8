"""float32 with packed exponents, in blocks of 1,024. Nothing is lost.

The largest changes of a layer differ by few powers of two, so that most of their eight bits of exponent say the same.
256 blocks are written at a time, then the numbers that fill no block:

    u8[]       a block: its smallest exponent
    u8[]       a block: the bits in which its exponents are written, less that smallest one
    bits       for each of these widths, in order: the exponents of its blocks, less the smallest one, as `pack_fields`
               writes them
    u16[] u8[] of all numbers the 24 bits that are left, the lowest 16 first: the mantissa, and below it the sign
"""

import numpy as np
import torch

from fedmerge.wire.bits import BLOCK, CodeError, ceil_div, chunks_of, field_bytes, pack_fields, unpack_fields

WIDTHS = np.array([i.bit_length() for i in range(256)], np.uint8)


def float_bytes(x):
    """Return len(encode_floats(x)) for a float32 tensor x [n], computed on its device; waits for it once."""
    n = len(x)
    whole = n - n % BLOCK
    exponents = (x.view(torch.int32) >> 23) & 255
    blocks = [part for part in (exponents[:whole].view(-1, BLOCK), exponents[whole:].view(1, -1)) if part.numel()]
    widths = torch.from_numpy(WIDTHS.astype(np.int64)).to(x.device)
    fields = [field_bytes(part.shape[1], widths[part.amax(1) - part.amin(1)]).sum() for part in blocks]
    return 3 * n + 2 * ceil_div(n, BLOCK) + int(sum(fields))


def encode_floats(x):
    """Return the code of a float32 array x [n] in parts of bytes; n is not in it."""
    return [part for blocks in chunks_of(x) for part in _encode_float_blocks(blocks)]


def _encode_float_blocks(blocks):
    bits = blocks.view(np.uint32)
    turned = bits << 1  # the exponent is the highest byte now, the sign the lowest bit
    turned |= bits >> 31
    exponents = (turned >> 24).astype(np.uint8)
    lowest = exponents.min(1)
    widths = WIDTHS[exponents.max(1) - lowest]
    exponents -= lowest[:, None]
    fields = [pack_fields(exponents[widths == width].reshape(-1), int(width)) for width in np.unique(widths)]
    low, high = turned.astype("<u2"), (turned >> 16).astype(np.uint8)  # both drop what lies above
    return [lowest.tobytes(), widths.tobytes(), *fields, low.tobytes(), high.tobytes()]


def decode_floats(reader, n):
    """Return the float32 array [n] that `encode_floats` wrote, from a Reader. Raises CodeError if it did not."""
    x = np.empty(n, np.float32)
    for blocks in chunks_of(x):  # views into x
        _decode_float_blocks(reader, blocks)
    return x


def _decode_float_blocks(reader, out):
    lowest, widths = reader.array(len(out)), reader.array(len(out))
    if widths.max() > 8:
        raise CodeError("an exponent too wide")
    exponents = np.zeros(out.shape, np.uint8)
    for width in np.unique(widths):
        members = widths == width
        size = int(members.sum()) * out.shape[1]
        exponents[members] = unpack_fields(reader, size, int(width)).reshape(-1, out.shape[1])
    if (exponents.max(1) > 255 - lowest).any():
        raise CodeError("an exponent out of range")
    exponents += lowest[:, None]
    low, high = reader.array(out.size, "<u2").reshape(out.shape), reader.array(out.size).reshape(out.shape)
    turned = exponents.astype(np.uint32)
    turned <<= 8
    turned |= high
    turned <<= 16
    turned |= low
    bits = out.view(np.uint32)
    np.right_shift(turned, 1, out=bits)
    turned <<= 31
    bits |= turned
