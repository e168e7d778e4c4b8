"""Golomb's code for long arrays of small whole numbers, such as the gaps between the ones of a mask.

It goes by blocks of 1,024 numbers. A number x is split by its block's divisor into x // divisor, in unary, and
x % divisor, in a fixed width (Golomb 1966). Gaps in a random mask are geometric, and for those no code of whole symbols
is shorter. Divisors are 2^j (j up to 28) and 3 * 2^j (up to 27), numbered by their size: the powers of two alone
(Rice's code) cost up to 4 % more than the entropy at densities around 0.2, these at most 2 %. As every block has its
own, a mask whose layers differ in density costs less than the entropy of its mean density. 256 blocks are written at a
time, then the numbers that fill no block, so that all passes over them stay in the cache:

    u8[]       a block: 0 if all its numbers are 0 (which then take nothing more), else the divisor's number, from 1
    and for each divisor among them, in order,
    u32        bits of the unary part
    bits       x // divisor zeros, then a one, for every number of its blocks
    u8[]       if the divisor is 3 * 2^j: (x >> j) % 3, five a byte, a fifth of the numbers apart, the first fifth's as
               the ones, the next one's as the threes, and so on; the last fifth may be shorter
    bits       the lowest j bits as `pack_fields` writes them: of all numbers the lowest byte, the next byte, ..., then
               for each bit that is left, from the lowest on, a bit a number
"""

import functools
import math
import struct
from itertools import pairwise

import numpy as np
import torch

from fedmerge.wire.bits import (
    BLOCK,
    CHUNK,
    CodeError,
    Reader,
    ceil_div,
    chunks_of,
    field_bytes,
    pack_fields,
    unpack_fields,
)

LARGEST = 2**31 - 1  # of the numbers coded
SCALE = 4096  # block means are compared as whole multiples of 1 / SCALE, so that every device decides alike
DIVISORS = np.array(sorted([2**j for j in range(29)] + [3 * 2**j for j in range(28)]))
TRIPLE = DIVISORS % 3 == 0
SHIFTS = np.log2(np.where(TRIPLE, DIVISORS // 3, DIVISORS)).round().astype(np.int64)
LENGTH = struct.Struct("<I")


@functools.cache
def _thresholds():
    """Return int64 [len(DIVISORS) - 1]: SCALE times the mean up to which a divisor is no worse than the next."""

    def bits(mean, divisor, triple, shift):
        tail = (mean / (1 + mean)) ** divisor  # of a geometric distribution
        return 1 + tail / (1 - tail) + shift + (8 / 5 if triple else 0)

    found, kinds = [], list(zip(DIVISORS.tolist(), TRIPLE.tolist(), SHIFTS.tolist(), strict=True))
    for one, other in pairwise(kinds):
        low, high = 0.1 * one[0], 4.0 * other[0]
        for _ in range(60):
            mean = (low + high) / 2
            low, high = (mean, high) if bits(mean, *one) <= bits(mean, *other) else (low, mean)
        found.append(math.floor(SCALE * low))
    return np.array(found)


def coded_bytes(x):
    """Return len(encode(x)) for an integer tensor x [n], computed on its device; waits for it once."""
    n = len(x)
    whole, places = n - n % BLOCK, len(DIVISORS)
    blocks = [x[:whole].view(-1, BLOCK), torch.nn.functional.pad(x[whole:], (0, -n % BLOCK)).view(-1, BLOCK)]
    counts = torch.full((len(blocks[0]) + len(blocks[1]),), BLOCK, device=x.device)
    counts[len(blocks[0]) :] = n - whole
    chunks = torch.arange(len(counts), device=x.device) // CHUNK
    chunks[len(blocks[0]) :] = ceil_div(len(blocks[0]), CHUNK)
    sums = torch.cat([b.sum(1, dtype=torch.int64) for b in blocks])
    place = torch.bucketize(sums * SCALE // counts, torch.from_numpy(_thresholds()).to(x.device))
    shifts, triples = (torch.from_numpy(table).to(x.device) for table in (SHIFTS, TRIPLE))
    quotients = torch.cat(blocks) >> shifts[place, None]
    quotients = torch.where(triples[place, None], quotients // 3, quotients).sum(1, dtype=torch.int64)
    group, coded = chunks * places + place, counts * (sums > 0)  # of a chunk, the blocks of one divisor
    members = torch.zeros(
        int(n > 0) * (ceil_div(len(blocks[0]), CHUNK) + 1) * places, dtype=torch.int64, device=x.device
    )
    unary = torch.zeros_like(members).scatter_add_(0, group, quotients * (sums > 0) + coded)
    members = members.scatter_add_(0, group, coded).view(-1, places)
    sizes = LENGTH.size * (members > 0) + ceil_div(unary.view(-1, places), 8) + ceil_div(members * triples, 5)
    return ceil_div(n, BLOCK) + int((sizes + field_bytes(members, shifts)).sum())


def encode(x):
    """Return the code of an array x [n] of whole numbers in 0..LARGEST as bytes; n is not in it."""
    return b"".join(part for blocks in chunks_of(x) for part in _encode_blocks(blocks))


def encode_places(places):
    """Return `encode` of how many numbers lie between each of the ascending places [n] and the one before, as bytes."""
    parts, before = [], -1
    for blocks in chunks_of(places):
        places, gaps = blocks.reshape(-1), np.empty(blocks.shape, np.int32)
        np.subtract(places[1:], places[:-1], out=gaps.reshape(-1)[1:], casting="unsafe")
        gaps[0, 0] = places[0] - before
        gaps -= 1
        before = places[-1]
        parts += _encode_blocks(gaps)
    return b"".join(parts)


def _encode_blocks(blocks):
    """Return the code of blocks [n_blocks, size] in parts of bytes."""
    if blocks.itemsize > 2 and blocks.max() < 2**16:
        blocks = blocks.astype(np.uint16)  # several times faster from here on
    sums = blocks.sum(1, dtype=np.int64)
    place = np.searchsorted(_thresholds(), sums * SCALE // blocks.shape[1])
    parameters = np.where(sums > 0, place + 1, 0).astype(np.uint8)
    parts = [parameters.tobytes()]
    for parameter in np.unique(parameters[parameters > 0]):
        x = (blocks if (parameters == parameter).all() else blocks[parameters == parameter]).reshape(-1)
        shift, trits = int(SHIFTS[parameter - 1]), b""
        fields, x = pack_fields(x, shift), x >> shift
        if TRIPLE[parameter - 1]:
            whole = x // 3
            trits, x = _pack_trits(x.astype(np.uint8) - 3 * whole.astype(np.uint8)), whole  # right modulo 256
        ends = x.astype(np.int64)
        ends += 1
        np.cumsum(ends, out=ends)
        unary = np.zeros(ends[-1] + 1, bool)
        unary[ends] = True  # one place too far
        parts += [LENGTH.pack(len(unary) - 1), np.packbits(unary[1:]).data, trits, fields]
    return parts


def decode(data, n):
    """Return (x, length): the int64 array x [n] that `encode` wrote at the start of `data`, and its bytes.

    Raises CodeError if it did not write that. Allocates a multiple of n and of len(data), whatever `data` says.
    """
    reader, x = Reader(data), np.zeros(n, np.int64)
    for blocks in chunks_of(x):  # views into x
        _decode_blocks(reader, blocks)
    return x, reader.at


def decode_places(data, n, end):
    """Return (places, length): the int64 array [n], all below `end`, that encode_places wrote, and its bytes."""
    reader, places, before = Reader(data), np.zeros(n, np.int64), -1
    for blocks in chunks_of(places):
        _decode_blocks(reader, blocks)
        blocks += 1
        blocks[0, 0] += before
        flat = blocks.reshape(-1)
        before = np.cumsum(flat, out=flat)[-1]
        if before >= end:
            raise CodeError("a place out of range")
    return places, reader.at


def _decode_blocks(reader, out):
    """Fill `out [n_blocks, size]`, zeros so far."""
    parameters = reader.array(len(out))
    if parameters.max() > len(DIVISORS):
        raise CodeError("an unknown divisor")
    for parameter in np.unique(parameters[parameters > 0]):
        members = parameters == parameter
        size, shift = int(members.sum()) * out.shape[1], int(SHIFTS[parameter - 1])
        x = _read_unary(reader, size)
        if x.max() > LARGEST // DIVISORS[parameter - 1]:
            raise CodeError("a number too large")
        if TRIPLE[parameter - 1]:
            x *= 3
            x += _read_trits(reader, size)
        if shift:
            x <<= shift
            x += unpack_fields(reader, size, shift)
        out[slice(None) if members.all() else members] = x.reshape(-1, out.shape[1])


def _read_unary(reader, n):
    """Return the n > 0 numbers that the unary part holds, as uint32 [n]."""
    (n_bits,) = LENGTH.unpack(reader.take(LENGTH.size))
    bits = np.unpackbits(reader.array(ceil_div(n_bits, 8)))
    ends = np.flatnonzero(bits.view(bool))
    if len(ends) != n or ends[-1] + 1 != n_bits:
        raise CodeError("the unary part has not one end a number")
    x = np.empty(n, np.uint32)
    x[0] = ends[0] + 1
    np.subtract(ends[1:], ends[:-1], out=x[1:], casting="unsafe")
    x -= 1
    return x


def _pack_trits(x):
    planes = np.zeros((5, ceil_div(len(x), 5)), np.uint8)
    planes.reshape(-1)[: len(x)] = x
    packed = planes[4]
    for plane in planes[3::-1]:
        packed *= 3
        packed += plane
    return packed.tobytes()


def _read_trits(reader, n):
    packed = reader.array(ceil_div(n, 5))
    if packed.max() > 242:
        raise CodeError("a byte that is not five trits")
    planes = np.empty((5, len(packed)), np.uint8)
    for plane in planes:
        rest = packed // 3
        np.subtract(packed, 3 * rest, out=plane)
        packed = rest
    return planes.reshape(-1)[:n]
