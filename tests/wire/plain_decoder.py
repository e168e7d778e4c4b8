"""A decoder of messages made from what the docstrings of fedmerge/wire say, in plain Python, bit by bit."""

import math
import struct
import zlib
from itertools import accumulate

BLOCK, CHUNK = 1024, 256
DIVISORS = sorted([(2**j, j, False) for j in range(29)] + [(3 * 2**j, j, True) for j in range(28)])


class Source:
    """Takes numbers off the front of bytes."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        self.at += n
        assert self.at <= len(self.data)
        return self.data[self.at - n : self.at]

    def numbers(self, kind, n):
        return list(struct.unpack(f"<{n}{kind}", self.take(n * struct.calcsize(kind))))

    def bits(self, n):
        found = [byte >> (7 - i) & 1 for byte in self.take(-(-n // 8)) for i in range(8)]
        assert not any(found[n:])
        return found[:n]

    def fields(self, n, width):
        """What `pack_fields` writes."""
        found = [0] * n
        for i in range(width // 8):
            found = [x | byte << 8 * i for x, byte in zip(found, self.take(n), strict=True)]
        for i in range(8 * (width // 8), width):
            found = [x | bit << i for x, bit in zip(found, self.bits(n), strict=True)]
        return found


def chunks(n):
    """The sizes of the blocks that are written together, for n numbers."""
    whole = [BLOCK] * (n // BLOCK)
    return [whole[i : i + CHUNK] for i in range(0, len(whole), CHUNK)] + ([[n % BLOCK]] if n % BLOCK else [])


def grouped(sizes, kinds, read):
    """The numbers of blocks in order; those of one kind stand together and are read by read(kind, how many)."""
    blocks = {}
    for kind in sorted(set(kinds)):
        members = [i for i, other in enumerate(kinds) if other == kind]
        found = iter(read(kind, sum(sizes[i] for i in members)))
        blocks.update({i: [next(found) for _ in range(sizes[i])] for i in members})
    return [x for i in range(len(sizes)) for x in blocks[i]]


def golomb(source, n):
    def read(number, count):
        if number == 0:
            return [0] * count
        _, shift, triple = DIVISORS[number - 1]
        unary = "".join(map(str, source.bits(source.numbers("I", 1)[0])))
        found = [len(zeros) for zeros in unary.split("1")]
        assert len(found) == count + 1
        assert found.pop() == 0
        if triple:
            packed = source.take(-(-count // 5))
            threes = [byte // 3**k % 3 for k in range(5) for byte in packed]
            found = [3 * x + three for x, three in zip(found, threes, strict=False)]
        return [x << shift | low for x, low in zip(found, source.fields(count, shift), strict=True)]

    return [x for sizes in chunks(n) for x in grouped(sizes, source.take(len(sizes)), read)]


def packed_floats(source, n):
    found = []
    for sizes in chunks(n):
        smallest, widths = source.take(len(sizes)), source.take(len(sizes))
        above = grouped(sizes, widths, lambda width, count: source.fields(count, width))
        exponents = [smallest[i // BLOCK] + x for i, x in enumerate(above)]
        lowest, highest = source.numbers("H", sum(sizes)), source.take(sum(sizes))
        for exponent, low, high in zip(exponents, lowest, highest, strict=True):
            rest = high << 16 | low
            found += struct.unpack("<f", struct.pack("<I", (rest & 1) << 31 | exponent << 23 | rest >> 1))
    return found


def values(source, bits, kind, n):
    if bits == 32:
        return packed_floats(source, n) if kind else source.numbers("f", n)
    if bits == 16:
        (exponent,) = source.numbers("i", 1)
        return [math.ldexp(x, exponent - 15) for x in source.numbers("e", n)]
    if bits == 0:
        return source.numbers("f", 1) * n
    a_block = 1 if bits == 1 else 2
    scales = source.numbers("f", a_block * -(-n // BLOCK))
    signs = [-1 if bit else 1 for bit in source.bits(n)]
    if bits == 1:
        return [sign * scales[i // BLOCK] for i, sign in enumerate(signs)]
    levels = golomb(source, n) if kind else source.fields(n, bits - 1)
    low, high = scales[::2], scales[1::2]
    steps = [(b - a) / (2 ** (bits - 1) - 1) for a, b in zip(low, high, strict=True)]
    return [signs[i] * (low[i // BLOCK] + level * steps[i // BLOCK]) for i, level in enumerate(levels)]


def decode(data):
    """Return (the vector, 0 where nothing was kept, round, client) of the bytes of a message."""
    source = Source(data)
    magic, version, bits, how, kind, zero, *sizes = struct.unpack("<3sBBBBBIIIIi", source.take(28))
    n, buffers, kept, round, client = sizes
    assert (magic, version, zero) == (b"FSU", 2, 0)
    assert source.numbers("I", 1)[0] == zlib.crc32(data[:28] + data[32:])
    if how == 1:
        places = [i for i, bit in enumerate(source.bits(n)) if bit]
    else:
        gaps = golomb(source, {0: 0, 2: kept, 3: n - kept}[how])
        places = [i + before for i, before in enumerate(accumulate(gaps))]
        if how != 2:
            places = sorted(set(range(n)) - set(places))
    vector = [0.0] * n
    for place, value in zip(places, values(source, bits, kind, kept), strict=True):
        vector[place] = value
    vector += source.numbers("f", buffers)
    assert source.at == len(data)
    return vector, round, client
