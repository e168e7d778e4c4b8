"""Hostile bytes for wire.decode, found by coverage (pip install atheris):

    python tests/wire/fuzz_payload.py -max_total_time=3600 -rss_limit_mb=2048

A third of the inputs are bytes as they come, a third bodies behind a header that fits and has the right checksum, a
third real messages in which some bytes are changed and the checksum mended. Each must raise PayloadError and nothing
else, or be a message that survives being written and read again.
"""

import struct
import sys
import zlib
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch

with atheris.instrument_imports(include=["fedmerge.wire"]):
    from fedmerge import wire
from fedmerge.client_update import ClientUpdate

torch.set_num_threads(1)
cases = {"refused": 0, "read": 0}


def mended(header, body):
    """Return header and body with the checksum that belongs to them."""
    return header + struct.pack("<I", zlib.crc32(body, zlib.crc32(header))) + body


def candidate(given):
    """Return (bytes, n_trainable, n_buffers) made of what the fuzzer gives."""
    n, buffers, kind = given.ConsumeIntInRange(1, 5000), given.ConsumeIntInRange(0, 9), given.ConsumeIntInRange(0, 2)
    if kind == 0:
        return given.ConsumeBytes(10**6), n, buffers
    bits, seed = given.PickValueInList(list(wire.FORMATS)), given.ConsumeIntInRange(0, 2**16)
    if kind == 1:
        how, kept = [given.ConsumeIntInRange(0, 4), given.ConsumeIntInRange(0, 2)], given.ConsumeIntInRange(0, n)
        header = wire.HEADER.pack(wire.MAGIC, wire.VERSION, bits, *how, n, buffers, kept, 1, 2)
        return mended(header, given.ConsumeBytes(10**6)), n, buffers
    rng = torch.Generator().manual_seed(seed)
    mask = torch.rand(n, generator=rng) < given.ConsumeProbability()
    delta = torch.randn(n + buffers, generator=rng) * 10.0 ** given.ConsumeIntInRange(-30, 30)
    delta[torch.rand(n + buffers, generator=rng) < given.ConsumeProbability()] *= 1e-6
    data = bytearray(wire.encode(wire.pack(ClientUpdate(delta, mask), n, bits, rng)))
    size = wire.HEADER.size
    for _ in range(given.ConsumeIntInRange(1, 8)):
        data[given.ConsumeIntInRange(0, len(data) - 1)] = given.ConsumeIntInRange(0, 255)
    end = given.ConsumeIntInRange(size + 4, len(data)) if given.ConsumeBool() else len(data)
    return mended(bytes(data[:size]), bytes(data[size + 4 : end])), n, buffers


def check(data):
    blob, n, buffers = candidate(atheris.FuzzedDataProvider(data))
    try:
        message = wire.decode(blob, n, buffers)
    except wire.PayloadError:
        cases["refused"] += 1
    else:
        cases["read"] += 1
        vector = message.unpack(torch.empty(n + buffers))
        assert torch.isfinite(vector).all()
        again = wire.encode(message)
        assert len(again) == wire.payload_bytes(message)
        assert torch.equal(wire.decode(again, n, buffers).unpack(torch.empty(n + buffers)), vector)
    if sum(cases.values()) % 100_000 == 0:
        print(cases, flush=True)


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
