"""Numbers of a fixed width as bytes, blocks of them, and a reader that takes nothing on trust."""

import numpy as np

BLOCK = 1024  # numbers that share a divisor, or scales
CHUNK = 256  # blocks that are written at a time


class CodeError(ValueError):
    """The bytes are not what `encode` writes."""


def ceil_div(a, b):
    """Return the least whole number that is not below a / b."""
    return -(-a // b)


def chunks_of(x):
    """Yield x [n] as arrays [blocks, BLOCK] of up to CHUNK blocks; what fills no block comes last, as [1, rest]."""
    whole = len(x) - len(x) % BLOCK
    for begin in range(0, whole, CHUNK * BLOCK):
        yield x[begin : min(whole, begin + CHUNK * BLOCK)].reshape(-1, BLOCK)
    if whole < len(x):
        yield x[whole:].reshape(1, -1)


def field_bytes(n, width):
    """Return the bytes that n numbers of `width` bits take in `pack_fields`."""
    return n * (width // 8) + ceil_div(n, 8) * (width % 8)


def pack_fields(x, width):
    """Return the lowest `width` bits of each number as bytes: a plane for each whole byte, one for each bit left."""
    planes = [(x >> 8 * i).astype(np.uint8).tobytes() for i in range(width // 8)]
    rest = (x >> 8 * (width // 8)).astype(np.uint8)
    planes += [np.packbits(rest & (1 << i)).tobytes() for i in range(width % 8)]
    return b"".join(planes)


def unpack_fields(reader, n, width):
    """Return the array [n] of whole numbers that pack_fields wrote, from a Reader."""
    rest = np.zeros(n, np.uint8)
    planes = [reader.array(n) for _ in range(width // 8)]
    for i in range(width % 8):
        rest |= np.unpackbits(reader.array(ceil_div(n, 8)), count=n) * np.uint8(1 << i)  # faster than a shift
    if not planes:
        return rest
    if width == 8:
        return planes[0]
    return sum((plane.astype(np.uint32) << 8 * i for i, plane in enumerate([*planes, rest])))


def unpack_bits(reader, n):
    """Return the bool array [n] that np.packbits wrote, from a Reader. Raises CodeError if bits follow the last one."""
    packed = reader.array(ceil_div(n, 8))
    if n % 8 and packed[-1] & (0xFF >> n % 8):
        raise CodeError("bits behind the end")
    return np.unpackbits(packed, count=n).view(bool)


class Reader:
    """Takes bytes off the front of `data`. Raises CodeError where there are too few."""

    def __init__(self, data):
        self.data, self.at = memoryview(data), 0

    def take(self, size):
        if size > len(self.data) - self.at:
            raise CodeError("too short")
        self.at += size
        return self.data[self.at - size : self.at]

    def rest(self):
        """Return what is left, without taking it."""
        return self.data[self.at :]

    def array(self, size, dtype=np.uint8):
        """Return the next `size` numbers as a read-only array."""
        return np.frombuffer(self.take(size * np.dtype(dtype).itemsize), dtype)
