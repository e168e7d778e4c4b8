"""The wire format: an update -> a Message -> bytes -> the same Message.

`pack` turns a ClientUpdate into the Message that carries it, its values rounded to the declared bits. What the server
merges is what the Message unpacks to, whether or not its bytes are ever made: `payload_bytes` says how many `encode`
would make, and is computed on the update's device. `decode` takes nothing on trust. All numbers are little-endian:

    header     3 bytes "FSU"; u8 version (2), bits of a value, how the positions are written, how the values are
               (0 PLAIN, 1 CODED), 0; u32 weights, numbers in the tail, weights kept, round; i32 client (-1: the
               server); u32 CRC-32 of the 28 bytes before it and of all behind it
    positions  0: nothing, every weight is kept; 1: a bitmap, a bit a weight; 2: the gaps between the weights kept in
               Golomb's code (golomb.py); 3: those between the weights dropped, where more than half are kept. A gap is
               how many weights lie between one and the one before, or the beginning. The shortest of these is written
    values     of the weights kept, in their order, as quantization.py has them in these bits; then the tail, f32[]

The tail is all that follows the weights in a vector: the model's buffers (BatchNorm statistics), and behind them what
an algorithm sends besides. It is never rounded: a rounded change can make a small variance negative. It is whole, or
begins behind the buffers, if these have not changed: the header says how many numbers it has.
Bits fill bytes from the highest one on; in the last byte the rest is 0.
"""

import functools
import struct
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedmerge.errors import InputError
from fedmerge.wire import golomb
from fedmerge.wire.bits import CodeError, Reader, ceil_div, unpack_bits
from fedmerge.wire.quantization import FORMATS, PLAIN, Float32, Values

HEADER = struct.Struct("<3sBBBBxIIIIi")
CHECKSUM = struct.Struct("<I")
MAGIC, VERSION, SERVER = b"FSU", 2, -1
ALL, BITMAP, KEPT, DROPPED = range(4)  # how positions are written


class PayloadError(InputError):
    """Bytes that are not a message for this model; one line that says why."""


@dataclass
class Message:
    """What crosses the wire, one way, once."""

    n_trainable: int
    positions: Tensor | None  # int64 [kept], ascending; None: every weight
    weights: Values  # [kept]
    tail: Float32  # [dim - n_trainable - skipped]
    round: int = 0
    client: int = SERVER
    mask: Tensor | None = None  # bool [n_trainable], `positions` once more
    skipped: int = 0  # numbers between weights and tail, which have not changed

    def unpack(self, out):
        """Write the decoded vector into `out [dim]`, 0 where nothing was sent; return it."""
        weights, n = self.weights.dequantise(), self.n_trainable
        if self.positions is not None:
            out[:n].zero_().scatter_(0, self.positions, weights)
        elif weights.data_ptr() != out.data_ptr():
            out[:n] = weights
        out[n : n + self.skipped] = 0
        out[n + self.skipped :] = self.tail.dequantise()
        return out


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
    return min((golomb.coded_bytes(_gaps(positions)), how), (ceil_div(n, 8), BITMAP))


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
    if len(coded) > ceil_div(n, 8):
        return np.packbits(message.mask.cpu().numpy()).data, BITMAP
    return coded, how


def _read_positions(reader, how, n, kept):
    """Return the positions int64 [kept] and the mask bool [n], or (None, None) for ALL."""
    if how == ALL:
        if kept != n:
            raise CodeError("positions are missing")
        return None, None
    if how == BITMAP:
        mask = unpack_bits(reader, n)
        positions = np.flatnonzero(mask)
        if len(positions) != kept:
            raise CodeError("the bitmap does not hold the number of weights said")
        return torch.from_numpy(positions), torch.from_numpy(mask)
    count = kept if how == KEPT else n - kept
    positions, length = golomb.decode_places(reader.rest(), count, n)
    reader.take(length)
    mask = np.full(n, how == DROPPED)
    mask[positions] = how == KEPT
    return torch.from_numpy(positions if how == KEPT else np.flatnonzero(mask)), torch.from_numpy(mask)


def pack(update, n_trainable, bits, rng=None, round=0, client=SERVER, skip=0):
    """Return the Message of a ClientUpdate (delta [dim], mask bool [n_trainable] or None) with values of `bits`.

    It shares memory with the update where nothing is rounded. A mask that keeps all is none. skip: how many numbers
    right behind the weights are left out.
    """
    delta, mask, positions = update.delta, update.mask, None
    if mask is not None:
        positions = places(mask)
        if len(positions) == n_trainable:
            mask = positions = None
    weights = delta[:n_trainable] if positions is None else delta.index_select(0, positions)
    values, tail = FORMATS[bits].quantise(weights, rng), Float32(delta[n_trainable + skip :])
    return Message(n_trainable, positions, values, tail, round, client, mask, skip)


def payload_bytes(message):
    """Return len(encode(message)), computed on the message's device without building the bytes."""
    values = message.weights.size(sparse=message.positions is not None) + message.tail.size()
    return HEADER.size + CHECKSUM.size + _positions_bytes(message)[0] + values


def dense_bytes(dim):
    """Return the bytes of a message of all `dim` numbers of a vector, in float32."""
    return HEADER.size + CHECKSUM.size + 4 * dim


def encode(message):
    """Return the message as bytes."""
    where, how = _write_positions(message)
    weights, way = message.weights.write(sparse=message.positions is not None)
    tail, _ = message.tail.write()
    kept = message.n_trainable if message.positions is None else len(message.positions)
    sizes = (message.n_trainable, len(message.tail.data), kept, message.round, message.client)
    header = HEADER.pack(MAGIC, VERSION, message.weights.bits, how, way, *sizes)
    body = [where, *weights, *tail]
    checksum = functools.reduce(lambda crc, part: zlib.crc32(part, crc), body, zlib.crc32(header))
    return b"".join([header, CHECKSUM.pack(checksum), *body])


def decode(data, n_trainable, n_tail, device="cpu", may_skip=0):
    """Return the Message that `encode` made bytes of, for vectors of `n_trainable` weights and a tail of `n_tail`.

    may_skip: how many numbers at the beginning of the tail may be missing, all at once.
    Raises PayloadError if it did not make these bytes, or for another model. Never allocates more than a small multiple
    of the model and of the bytes, whatever the bytes say.
    """
    try:
        return _decode(Reader(data), n_trainable, n_tail, device, may_skip)
    except CodeError as error:
        raise PayloadError(f"not a message of this program for this model: {error}") from None


def transmit(message, real):
    """Return the bytes of a message, and what arrives: itself, or, if `real`, what is read from bytes made of it.

    Raises PayloadError if `real` and a value is not finite.
    """
    if not real:
        return payload_bytes(message), message
    data, tail, skipped = encode(message), message.tail.data, message.skipped
    return len(data), decode(data, message.n_trainable, skipped + len(tail), tail.device, skipped)


def _decode(reader, n_trainable, n_tail, device, may_skip):
    header = reader.take(HEADER.size)
    magic, version, bits, how, way, *sizes = HEADER.unpack(header)
    n, in_tail, kept, round, client = sizes
    (checksum,) = CHECKSUM.unpack(reader.take(CHECKSUM.size))
    if magic != MAGIC:
        raise CodeError("it does not begin like one")
    if version != VERSION:
        raise CodeError(f"it is of version {version}, this program reads {VERSION}")
    if checksum != zlib.crc32(reader.rest(), zlib.crc32(header)):
        raise CodeError("its checksum is wrong")
    if n != n_trainable or in_tail not in (n_tail, n_tail - may_skip):
        raise CodeError(f"it has {n} weights and {in_tail} buffers, the model {n_trainable} and {n_tail}")
    values = FORMATS.get(bits)
    if values is None or how > DROPPED or way not in values.ways:
        raise CodeError("an unknown kind of value or position")
    if kept > n or client < SERVER:
        raise CodeError("a number out of range")
    positions, mask = _read_positions(reader, how, n, kept)
    weights, tail = values.read(reader, kept, way), Float32.read(reader, in_tail, PLAIN)
    if len(reader.rest()):
        raise CodeError("bytes behind the end")
    positions, mask = (None if t is None else t.to(device) for t in (positions, mask))
    return Message(n, positions, weights.to(device), tail.to(device), round, client, mask, n_tail - in_tail)
