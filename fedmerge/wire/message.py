"""The wire format: an update -> a Message -> bytes -> the same Message.

`pack` turns a ClientUpdate into the Message that carries it, its values rounded to the declared bits. What the server
merges is what the Message unpacks to, whether or not its bytes are ever made: `payload_bytes` says how many `encode`
would make, and is computed on the update's device. `decode` takes nothing on trust. All numbers are little-endian:

    header     3 bytes "FSU"; u8 version (2), bits of a value, kind of positions, kind of values, 0;
               u32 weights, buffers, weights kept, round; i32 client (-1: the server);
               u32 CRC-32 of the 28 bytes before it and of all behind it
    positions  0: nothing, every weight is kept; 1: a bitmap, a bit a weight; 2: the gaps between the weights kept in
               Golomb's code (codes.py); 3: those between the weights dropped, where more than half are kept. A gap is
               how many weights lie between one and the one before, or the beginning. The shortest of these is written
    values     of the weights kept, in their order; then of all buffers (BatchNorm statistics), plain, in 32 bits

Of the values, by their bits (kind 0, unless it says 1):

    32         f32[]; kind 1, of a sparse message: with their exponents packed (`encode_floats` of codes.py)
    16         i32 exponent e, f16[]: each is 2^(e - 15) times its float16. 2^e is the least power of two above all, so
               that tiny values keep their precision; e is -100 at least
    8, 4       f32 smallest, f32 largest magnitude of each block of 1,024 values, block by block; a sign bit a value, 1
               for less than 0; the levels, as `pack_fields` writes them in bits - 1 bits, or, kind 1, in Golomb's code.
               Level k stands for smallest + k * (largest - smallest) / (2^(bits - 1) - 1). They are rounded at random
               so that the mean is kept (as QSGD does, Alistarh et al. 2017, with levels from 0)
    1          f32 mean magnitude of each block; a sign bit a value (as STC has it for the whole vector, Sattler et al.
               2019)

Bits fill bytes from the highest one on; in the last byte the rest is 0. The last block may be shorter.
"""

import functools
import struct
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedmerge.errors import InputError
from fedmerge.wire import golomb
from fedmerge.wire.bits import BLOCK, CodeError, Reader, field_bytes, pack_fields, unpack_fields
from fedmerge.wire.float_coding import decode_floats, encode_floats, float_bytes

VALUE_BITS = (32, 16, 8, 4, 1)
HEADER = struct.Struct("<3sBBBBxIIIIi")
CHECKSUM = struct.Struct("<I")
MAGIC, VERSION, SERVER = b"FSU", 2, -1
ALL, BITMAP, KEPT, DROPPED = range(4)  # how positions are written
PLAIN, CODED = range(2)  # how values of 32 bits and levels are
EXPONENT = struct.Struct("<i")
LOWEST_EXPONENT = -100  # values below 2^-100 are as good as zero, and 2^115 is still a float32


class PayloadError(InputError):
    """Bytes that are not a message for this model; one line that says why."""


class Values(NamedTuple):
    """n values in some number of bits, as tensors of one device."""

    bits: int
    data: Tensor  # [n] float32 (32 bits), float16 (16), or the levels as uint8 (8, 4); of 1 bit there is none
    negative: Tensor | None = None  # bool [n] (8, 4, 1)
    scales: Tensor | None = None  # float32 [blocks, 2]: smallest and largest magnitude (8, 4); [blocks, 1]: mean (1);

    #                               int32 [1]: the exponent (16)


@dataclass
class Message:
    """What crosses the wire, one way, once."""

    n_trainable: int
    positions: Tensor | None  # int64 [kept], ascending; None: every weight
    weights: Values  # [kept]
    buffers: Values  # [dim - n_trainable]
    round: int = 0
    client: int = SERVER
    mask: Tensor | None = None  # bool [n_trainable], `positions` once more

    def unpack(self, out):
        """Write the decoded vector into `out [dim]`, 0 where nothing was kept; return it."""
        weights, n = dequantise(self.weights), self.n_trainable
        if self.positions is not None:
            out[:n].zero_().scatter_(0, self.positions, weights)
        elif weights.data_ptr() != out.data_ptr():
            out[:n] = weights
        if len(out) > n:
            out[n:] = dequantise(self.buffers)
        return out


def quantise(values, bits, rng=None):
    """Return float32 values [n] as Values of `bits`; `rng`, a CPU torch.Generator, rounds to 8, 4 and 1."""
    if bits == 32:
        return Values(32, values)
    if bits == 16:
        largest = values.abs().max() if len(values) else values.new_zeros(())
        exponent = torch.frexp(largest)[1].clamp(min=LOWEST_EXPONENT)
        return Values(16, torch.ldexp(values, 15 - exponent).half(), scales=exponent.int().view(1))
    n, draw = len(values), torch.rand(len(values), generator=rng).to(values.device)
    size = values.abs()
    if bits == 1:
        counts = _blocks(torch.ones_like(size)).sum(1)
        mean = (_blocks(size) / BLOCK).sum(1) * (BLOCK / counts)  # in this order, lest a sum is too large
        negative = (values < 0) | ((values == 0) & (draw < 0.5))  # a zero has either sign, so that the mean is kept
        return Values(1, values.new_empty(0, dtype=torch.uint8), negative, mean.view(-1, 1))
    levels = 2 ** (bits - 1) - 1
    blocks = _blocks(size, size[-1:])
    low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    place = (blocks - low) / (high - low) * levels  # not a number where all are equal: level 0 then
    level = (place.nan_to_num(0).view(-1)[:n] + draw).floor().clamp(max=levels).to(torch.uint8)
    return Values(bits, level, values < 0, torch.cat([low, high], 1))


def dequantise(values):
    """Return the float32 tensor [n] that Values stand for."""
    if values.bits == 32:
        return values.data
    if values.bits == 16:
        return torch.ldexp(values.data.float(), values.scales - 15)
    low, high = values.scales[:, :1], values.scales[:, -1:]
    if values.bits == 1:
        size = low.expand(-1, BLOCK)
    else:
        size = low + _blocks(values.data) * ((high - low) / (2 ** (values.bits - 1) - 1))
    size = size.reshape(-1)[: len(values.negative)]
    return torch.where(values.negative, -size, size)


def _blocks(x, last=None):
    """Return x [n] as [blocks, BLOCK], filled up with zeros, or with `last` [1]."""
    missing = -len(x) % BLOCK
    filler = x.new_zeros(missing) if last is None else last.expand(missing)
    return torch.cat([x, filler]).view(-1, BLOCK)


def _values_bytes(values, sparse=False):
    """Return the bytes that the values take; those of 32 bits are packed if they are `sparse`."""
    n = len(values.data)
    if values.bits == 32:
        return min(4 * n, float_bytes(values.data)) if sparse else 4 * n
    if values.bits == 16:
        return 2 * n + EXPONENT.size
    signs = 4 * values.scales.numel() + -(-len(values.negative) // 8)
    if values.bits == 1:
        return signs
    return signs + min(field_bytes(n, values.bits - 1), golomb.coded_bytes(values.data))


def _write_values(values, sparse=False):
    """Return (parts of bytes, PLAIN or CODED)."""
    data = values.data.cpu().numpy()
    if values.bits == 32:
        coded = encode_floats(data) if sparse else None
        if coded is not None and sum(map(len, coded)) < 4 * len(data):
            return coded, CODED
        return [data.astype("<f4", copy=False).data], PLAIN
    if values.bits == 16:
        return [EXPONENT.pack(int(values.scales)), data.astype("<f2", copy=False).data], PLAIN
    parts = [values.scales.cpu().numpy().astype("<f4").tobytes(), np.packbits(values.negative.cpu().numpy()).data]
    if values.bits == 1:
        return parts, PLAIN
    coded = golomb.encode(data)
    if len(coded) < field_bytes(len(data), values.bits - 1):
        return [*parts, coded], CODED
    return [*parts, pack_fields(data, values.bits - 1)], PLAIN


def _read_values(reader, bits, n, how):
    """Return the Values of n numbers; raises PayloadError, or CodeError, if they are not there or not finite."""
    if bits == 32:
        data = decode_floats(reader, n) if how == CODED else reader.array(n, "<f4").astype(np.float32)
        values = Values(32, torch.from_numpy(data))
    elif bits == 16:
        (exponent,) = EXPONENT.unpack(reader.take(EXPONENT.size))
        if not LOWEST_EXPONENT <= exponent <= 128:
            raise PayloadError("a scale that no value needs")
        data = torch.from_numpy(reader.array(n, "<f2").astype(np.float16))
        values = Values(16, data, scales=torch.tensor([exponent], dtype=torch.int32))
    else:
        shape = (-(-n // BLOCK), 1 if bits == 1 else 2)
        scales = reader.array(shape[0] * shape[1], "<f4").astype(np.float32).reshape(shape)
        negative = _read_bits(reader, n)
        if bits == 1:
            level = np.zeros(0, np.uint8)
        elif how == CODED:
            level, length = golomb.decode(reader.rest(), n)
            reader.take(length)
            if n and level.max() >= 2 ** (bits - 1):
                raise PayloadError("a level out of range")
        else:
            level = unpack_fields(reader, n, bits - 1)
        values = Values(bits, *map(torch.from_numpy, (level.astype(np.uint8), negative, scales)))
        if not (scales[:, 0] >= 0).all() or not (scales[:, 0] <= scales[:, -1]).all():
            raise PayloadError("a scale that is not one")
    if not np.isfinite(dequantise(values).numpy()).all():
        raise PayloadError("a value that is not finite")
    return values


def _read_bits(reader, n):
    """Return the bool array [n] that np.packbits wrote."""
    packed = reader.array(-(-n // 8))
    if n % 8 and packed[-1] & (0xFF >> n % 8):
        raise PayloadError("bits behind the end")
    return np.unpackbits(packed, count=n).view(bool)


def places(mask):
    """Return the places int64 [k] at which the bool mask [n] is set, in order."""
    if mask.device.type == "cpu":  # NumPy is several times faster there
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.nonzero().view(-1)


def _gaps(positions):
    """Return how many lie between each of the ascending positions [k] and the one before, as a tensor."""
    return positions.diff(prepend=positions.new_tensor([-1])) - 1


def _positions_bytes(message):
    """Return (bytes, how) of the shortest way to write the positions."""
    n, positions = message.n_trainable, message.positions
    if positions is None:
        return 0, ALL
    how = KEPT if 2 * len(positions) <= n else DROPPED
    if how == DROPPED:
        positions = places(~message.mask)
    return min((golomb.coded_bytes(_gaps(positions)), how), (-(-n // 8), BITMAP))


def _write_positions(message):
    """Return (bytes-like, how)."""
    n, positions = message.n_trainable, message.positions
    if positions is None:
        return b"", ALL
    how = KEPT if 2 * len(positions) <= n else DROPPED
    positions = positions.cpu().numpy()
    if how == DROPPED:
        positions = np.flatnonzero(~message.mask.cpu().numpy())
    coded = golomb.encode_places(positions)
    if len(coded) > -(-n // 8):
        return np.packbits(message.mask.cpu().numpy()).data, BITMAP
    return coded, how


def _read_positions(reader, how, n, kept):
    """Return the positions int64 [kept] and the mask bool [n], or (None, None) for ALL."""
    if how == ALL:
        if kept != n:
            raise PayloadError("positions are missing")
        return None, None
    if how == BITMAP:
        mask = _read_bits(reader, n)
        positions = np.flatnonzero(mask)
        if len(positions) != kept:
            raise PayloadError("the bitmap does not hold the number of weights said")
        return torch.from_numpy(positions), torch.from_numpy(mask)
    count = kept if how == KEPT else n - kept
    positions, length = golomb.decode_places(reader.rest(), count, n)
    reader.take(length)
    mask = np.full(n, how == DROPPED)
    mask[positions] = how == KEPT
    return torch.from_numpy(positions if how == KEPT else np.flatnonzero(mask)), torch.from_numpy(mask)


def pack(update, n_trainable, bits, rng=None, round=0, client=SERVER):
    """Return the Message of a ClientUpdate (delta [dim], mask bool [n_trainable] or None) with values of `bits`.

    It shares memory with the update where nothing is rounded. A mask that keeps all is none.
    """
    delta, mask, positions = update.delta, update.mask, None
    if mask is not None:
        positions = places(mask)
        if len(positions) == n_trainable:
            mask = positions = None
    weights = delta[:n_trainable] if positions is None else delta.index_select(0, positions)
    buffers = Values(32, delta[n_trainable:])  # a rounded change can make a small variance negative
    return Message(n_trainable, positions, quantise(weights, bits, rng), buffers, round, client, mask)


def payload_bytes(message):
    """Return len(encode(message)), computed on the message's device without building the bytes."""
    values = _values_bytes(message.weights, message.positions is not None) + _values_bytes(message.buffers)
    return HEADER.size + CHECKSUM.size + _positions_bytes(message)[0] + values


def dense_bytes(dim):
    """Return the bytes of a message of `dim` float32 weights and buffers, all of them."""
    return HEADER.size + CHECKSUM.size + 4 * dim


def encode(message):
    """Return the message as bytes."""
    where, how_positions = _write_positions(message)
    weights, how_values = _write_values(message.weights, message.positions is not None)
    buffers, _ = _write_values(message.buffers)
    kept = message.n_trainable if message.positions is None else len(message.positions)
    sizes = (message.n_trainable, len(message.buffers.data), kept, message.round, message.client)
    header = HEADER.pack(MAGIC, VERSION, message.weights.bits, how_positions, how_values, *sizes)
    body = [where, *weights, *buffers]
    return b"".join(
        [
            header,
            CHECKSUM.pack(functools.reduce(lambda crc, part: zlib.crc32(part, crc), body, zlib.crc32(header))),
            *body,
        ]
    )


def decode(data, n_trainable, n_buffers, device="cpu"):
    """Return the Message that `encode` made bytes of, for a model of `n_trainable` weights and `n_buffers` buffers.

    Raises PayloadError if it did not make these bytes, or for another model. Never allocates more than a small multiple
    of the model and of the bytes, whatever the bytes say.
    """
    try:
        return _decode(Reader(data), n_trainable, n_buffers, device)
    except (CodeError, PayloadError) as error:
        raise PayloadError(f"not a message of this program for this model: {error}") from None


def carry(message, real):
    """Return the bytes of a message, and what arrives: itself, or, if `real`, what is read from bytes made of it."""
    if not real:
        return payload_bytes(message), message
    data, n_buffers = encode(message), len(message.buffers.data)
    return len(data), decode(data, message.n_trainable, n_buffers, message.weights.data.device)


def _decode(reader, n_trainable, n_buffers, device):
    header = reader.take(HEADER.size)
    magic, version, bits, how_positions, how_values, *sizes = HEADER.unpack(header)
    n, buffers, kept, round, client = sizes
    (checksum,) = CHECKSUM.unpack(reader.take(CHECKSUM.size))
    if magic != MAGIC:
        raise PayloadError("it does not begin like one")
    if version != VERSION:
        raise PayloadError(f"it is of version {version}, this program reads {VERSION}")
    if checksum != zlib.crc32(reader.rest(), zlib.crc32(header)):
        raise PayloadError("its checksum is wrong")
    if (n, buffers) != (n_trainable, n_buffers):
        raise PayloadError(f"it has {n} weights and {buffers} buffers, the model {n_trainable} and {n_buffers}")
    if bits not in VALUE_BITS or how_positions > DROPPED or how_values > (CODED if bits in (32, 8, 4) else PLAIN):
        raise PayloadError("an unknown kind of value or position")
    if kept > n or client < SERVER:
        raise PayloadError("a number out of range")
    positions, mask = _read_positions(reader, how_positions, n, kept)
    weights = _read_values(reader, bits, kept, how_values)
    floats = _read_values(reader, 32, buffers, PLAIN)
    if len(reader.rest()):
        raise PayloadError("bytes behind the end")
    on_device = [None if t is None else t.to(device) for t in (positions, mask)]
    weights, floats = (Values(*(x.to(device) if torch.is_tensor(x) else x for x in v)) for v in (weights, floats))
    return Message(n, on_device[0], weights, floats, round, client, on_device[1])
