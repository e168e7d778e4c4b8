"""The formats in which a message holds its values: one class for each number of bits a value.

FORMATS tells them by their bits. A new one is a class here, and, to be offered, its number in VALUE_BITS of
config/kinds.py, which the command line reads without torch. What they write, by bits (way PLAIN, unless it says CODED):

    32         f32[]; CODED, of a sparse message: with their exponents packed (float_coding.py)
    16         i32 exponent e, f16[]: each is 2^(e - 15) times its float16. 2^e is the least power of two above all, so
               that tiny values keep their precision; e is -100 at least
    8, 4       f32 smallest, f32 largest magnitude of each block of 1,024 values, block by block; a sign bit a value, 1
               for less than 0; the levels, as `pack_fields` writes them in bits - 1 bits, or, CODED, in Golomb's code.
               Level k stands for smallest + k * (largest - smallest) / (2^(bits - 1) - 1). They are rounded at random
               so that the mean is kept (as QSGD does, Alistarh et al. 2017, with levels from 0)
    2          as 8 and 4, but the two magnitudes of a block are the means of its smaller and of its larger values, and
               each value has the nearer one, not at random (Lloyd 1982)
    1          f32 mean magnitude of each block; a sign bit a value (as STC has it for the whole vector, Sattler et al.
               2019)
    0          f32, what each of them is: their mean. For masks, which tell by positions alone; --value_bits has it not

Bits fill bytes from the highest one on; in the last byte the rest is 0. The last block may be shorter.
"""

import dataclasses
import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedmerge.wire import golomb
from fedmerge.wire.bits import BLOCK, CodeError, ceil_div, field_bytes, pack_fields, unpack_bits, unpack_fields
from fedmerge.wire.float_coding import decode_floats, encode_floats, float_bytes

PLAIN, CODED = range(2)  # the ways to write values
EXPONENT = struct.Struct("<i")
LLOYD_STEPS = 4  # after which the bound between two magnitudes hardly moves
LOWEST_EXPONENT = -100  # values below 2^-100 are as good as zero, and 2^115 is still a float32
FORMATS = {}  # bits of a value -> the class of Values that holds them so


def _format(cls):
    """Enter a class of Values in FORMATS."""
    FORMATS[cls.bits] = cls
    return cls


class Values(ABC):
    """n values in one format, as tensors of one device. Subclasses say in which, and are frozen dataclasses."""

    bits: ClassVar[int]  # of a value
    ways: ClassVar = (PLAIN,)  # in which they may be written

    @classmethod
    @abstractmethod
    def quantise(cls, values, rng=None):
        """Return float32 values [n] in this format; `rng`, a CPU torch.Generator, rounds those of 8 bits and fewer."""

    @abstractmethod
    def dequantise(self):
        """Return the float32 tensor [n] that they stand for."""

    @abstractmethod
    def size(self, sparse=False):
        """Return the bytes that `write` makes, computed on the device. sparse: few of many, the largest ones."""

    @abstractmethod
    def write(self, sparse=False):
        """Return (parts of bytes, the way in which they are written)."""

    @classmethod
    def read(cls, reader, n, way):
        """Return the n values that `write` wrote, on the CPU, from a Reader.

        Raises CodeError if they are not there, if one is not finite, or if `write` would not have written this.
        """
        values = cls._read(reader, n, way)
        if not np.isfinite(values.dequantise().numpy()).all():
            raise CodeError("a value that is not finite")
        return values

    @classmethod
    @abstractmethod
    def _read(cls, reader, n, way):
        """Return what `read` returns, whether or not it is finite."""

    def to(self, device):
        """Return them on another device."""
        return type(self)(*(getattr(self, field.name).to(device) for field in dataclasses.fields(self)))


@_format
@dataclass(frozen=True)
class Float32(Values):
    """values as they are"""

    data: Tensor  # float32 [n]

    bits = 32
    ways = (PLAIN, CODED)

    @classmethod
    def quantise(cls, values, rng=None):
        return cls(values)

    def dequantise(self):
        return self.data

    def size(self, sparse=False):
        plain = 4 * len(self.data)
        return min(plain, float_bytes(self.data)) if sparse else plain

    def write(self, sparse=False):
        data = self.data.cpu().numpy()
        coded = encode_floats(data) if sparse else None
        if coded is not None and sum(map(len, coded)) < 4 * len(data):
            return coded, CODED
        return [data.astype("<f4", copy=False).data], PLAIN

    @classmethod
    def _read(cls, reader, n, way):
        data = decode_floats(reader, n) if way == CODED else reader.array(n, "<f4").astype(np.float32)
        return cls(torch.from_numpy(data))


@_format
@dataclass(frozen=True)
class Float16(Values):
    """float16, with one exponent for all"""

    data: Tensor  # float16 [n]
    exponent: Tensor  # int32 [1]

    bits = 16

    @classmethod
    def quantise(cls, values, rng=None):
        largest = values.abs().max() if len(values) else values.new_zeros(())
        exponent = torch.frexp(largest)[1].clamp(min=LOWEST_EXPONENT)
        return cls(torch.ldexp(values, 15 - exponent).half(), exponent.int().view(1))

    def dequantise(self):
        return torch.ldexp(self.data.float(), self.exponent - 15)

    def size(self, sparse=False):
        return 2 * len(self.data) + EXPONENT.size

    def write(self, sparse=False):
        return [EXPONENT.pack(int(self.exponent)), self.data.cpu().numpy().astype("<f2", copy=False).data], PLAIN

    @classmethod
    def _read(cls, reader, n, way):
        (exponent,) = EXPONENT.unpack(reader.take(EXPONENT.size))
        if not LOWEST_EXPONENT <= exponent <= 128:
            raise CodeError("a scale that no value needs")
        data = torch.from_numpy(reader.array(n, "<f2").astype(np.float16))
        return cls(data, torch.tensor([exponent], dtype=torch.int32))


@dataclass(frozen=True)
class _Levels(Values):
    """a sign, and evenly spaced levels between the smallest and the largest magnitude of a block"""

    levels: Tensor  # uint8 [n], from 0 to 2^(bits - 1) - 1
    negative: Tensor  # bool [n]
    scales: Tensor  # float32 [blocks, 2]: smallest and largest magnitude

    ways = (PLAIN, CODED)

    @classmethod
    def quantise(cls, values, rng=None):
        n, draw, size = len(values), _draw(values, rng), values.abs()
        blocks, highest = _blocks(size, size[-1:]), 2 ** (cls.bits - 1) - 1
        low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
        place = (blocks - low) / (high - low) * highest  # not a number where all are equal: level 0 then
        levels = (place.nan_to_num(0).view(-1)[:n] + draw).floor().clamp(max=highest).to(torch.uint8)
        return cls(levels, values < 0, torch.cat([low, high], 1))

    def dequantise(self):
        low, high = self.scales[:, :1], self.scales[:, 1:]
        return _signed(low + _blocks(self.levels) * ((high - low) / (2 ** (self.bits - 1) - 1)), self.negative)

    def size(self, sparse=False):
        levels = min(field_bytes(len(self.levels), self.bits - 1), golomb.coded_bytes(self.levels))
        return _signs_and_scales_bytes(self) + levels

    def write(self, sparse=False):
        parts, levels = _write_signs_and_scales(self), self.levels.cpu().numpy()
        coded = golomb.encode(levels)
        if len(coded) < field_bytes(len(levels), self.bits - 1):
            return [*parts, coded], CODED
        return [*parts, pack_fields(levels, self.bits - 1)], PLAIN

    @classmethod
    def _read(cls, reader, n, way):
        scales, negative = _read_scales(reader, n, 2), unpack_bits(reader, n)
        if way == CODED:
            levels, length = golomb.decode(reader.rest(), n)
            reader.take(length)
            if n and levels.max() >= 2 ** (cls.bits - 1):
                raise CodeError("a level out of range")
        else:
            levels = unpack_fields(reader, n, cls.bits - 1)
        _check_scales(scales)
        return cls(*map(torch.from_numpy, (levels.astype(np.uint8), negative, scales)))


@_format
class Levels8(_Levels):
    """a sign and 128 levels"""

    bits = 8


@_format
class Levels4(_Levels):
    """a sign and 8 levels"""

    bits = 4


@_format
class Levels2(_Levels):
    """a sign, and which of two magnitudes: the means of the smaller and of the larger values of a block"""

    bits = 2

    @classmethod
    def quantise(cls, values, rng=None):
        draw, size = _draw(values, rng), values.abs()
        blocks, there = _blocks(size), _blocks(torch.ones_like(size))
        bound = _mean(blocks, there)
        for _ in range(LLOYD_STEPS):
            larger = (blocks > bound) * there
            low, high = _mean(blocks, there - larger), _mean(blocks, larger)
            high = torch.where(larger.any(1, keepdim=True), torch.maximum(low, high), low)
            bound = low / 2 + high / 2
        levels = (blocks > bound).view(-1)[: len(values)].to(torch.uint8)
        return cls(levels, _negative(values, draw), torch.cat([low, high], 1))


@_format
@dataclass(frozen=True)
class Signs(Values):
    """a sign, and the mean magnitude of a block"""

    negative: Tensor  # bool [n]
    scales: Tensor  # float32 [blocks, 1]: mean magnitude

    bits = 1

    @classmethod
    def quantise(cls, values, rng=None):
        draw, size = _draw(values, rng), values.abs()
        return cls(_negative(values, draw), _mean(_blocks(size), _blocks(torch.ones_like(size))))

    def dequantise(self):
        return _signed(self.scales.expand(-1, BLOCK), self.negative)

    def size(self, sparse=False):
        return _signs_and_scales_bytes(self)

    def write(self, sparse=False):
        return _write_signs_and_scales(self), PLAIN

    @classmethod
    def _read(cls, reader, n, way):
        scales, negative = _read_scales(reader, n, 1), unpack_bits(reader, n)
        _check_scales(scales)
        return cls(*map(torch.from_numpy, (negative, scales)))


@_format
@dataclass(frozen=True)
class Equal(Values):
    """one number for all"""

    count: Tensor  # of values, int64 [1]
    value: Tensor  # float32 [1]

    bits = 0

    @classmethod
    def quantise(cls, values, rng=None):
        return cls(torch.tensor([len(values)]), _exact_mean(values))

    def dequantise(self):
        return self.value.expand(int(self.count))

    def size(self, sparse=False):
        return 4 * len(self.value)

    def write(self, sparse=False):
        return [self.value.cpu().numpy().astype("<f4").tobytes()], PLAIN

    @classmethod
    def _read(cls, reader, n, way):
        value = torch.from_numpy(reader.array(1, "<f4").astype(np.float32))
        if not n and value:
            raise CodeError("a number that no value has")
        return cls(torch.tensor([n]), value)


# --------------------------------------------------------------------------------------------------------------------
# What formats with a sign bit and scales share


def _exact_mean(values):
    """Return the mean [1] of float32 values [n], 0 of none: if all are one number, to the last bit this one."""
    mean = values.cpu().double().mean() if len(values) else torch.zeros(())
    return mean.float().to(values.device).view(1)


def _draw(values, rng):
    """Return a number in [0, 1) for each of the values; those of one rng are the same on every device."""
    return torch.rand(len(values), generator=rng).to(values.device)


def _negative(values, draw):
    """Return which of the values are less than 0, bool [n]; a zero has either sign, so that the mean is kept."""
    return (values < 0) | ((values == 0) & (draw < 0.5))


def _mean(blocks, counted):
    """Return the mean [blocks, 1] of those of each block that are `counted`, 1 or 0; 0 where none is."""
    sums = (blocks / BLOCK * counted).sum(1, keepdim=True)  # divided first, lest a sum is too large
    return sums * (BLOCK / counted.sum(1, keepdim=True).clamp(min=1))


def _blocks(x, last=None):
    """Return x [n] as [blocks, BLOCK], filled up with zeros, or with `last` [1]."""
    missing = -len(x) % BLOCK
    filler = x.new_zeros(missing) if last is None else last.expand(missing)
    return torch.cat([x, filler]).view(-1, BLOCK)


def _signed(size, negative):
    """Return the magnitudes `size [blocks, BLOCK]` as [n], less than 0 where `negative`, bool [n]."""
    size = size.reshape(-1)[: len(negative)]
    return torch.where(negative, -size, size)


def _signs_and_scales_bytes(values):
    return 4 * values.scales.numel() + ceil_div(len(values.negative), 8)


def _write_signs_and_scales(values):
    return [values.scales.cpu().numpy().astype("<f4").tobytes(), np.packbits(values.negative.cpu().numpy()).data]


def _read_scales(reader, n, a_block):
    """Return the scales, float32 [blocks, a_block], of n values."""
    n_blocks = ceil_div(n, BLOCK)
    return reader.array(n_blocks * a_block, "<f4").astype(np.float32).reshape(n_blocks, a_block)


def _check_scales(scales):
    """Raise CodeError unless each block's are magnitudes, the smallest first."""
    if not (scales[:, 0] >= 0).all() or not (scales[:, 0] <= scales[:, -1]).all():
        raise CodeError("a scale that is not one")
