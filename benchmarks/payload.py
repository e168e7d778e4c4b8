"""Bytes and speed of the wire format against packbits, zlib and zstandard on the same update.

    python benchmarks/payload.py [--rounds 7]      (needs: pip install zstandard)

An update of ResNet-18's 11.2 million weights, of which 1 % and 20 % are kept, is written with float32 values and read
again, to a given vector and to the mask. The others write the mask with np.packbits, compress it or not, and append the
values kept; "zstd, all" compresses the values, too. The update is that of a client after two epochs on the digits, at
32x32 pixels, and what it keeps are the largest changes of every layer; or the same values at random places. All take
turns in one process; times are medians; the last column is writing and reading over that of the fastest.
"""

import argparse
import math
import statistics
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import torch
import zstandard

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fedmerge import wire
from fedmerge.client_update import ClientUpdate
from fedmerge.compressors.largest import top_k_mask
from fedmerge.config.resolve import resolve
from fedmerge.simulation.experiment import prepare


def trained_update():
    """Return (delta [dim], layout) of one client of a ResNet-18 on the digits, enlarged to 32x32 pixels."""
    settings = {"model_name": "resnet18", "image_size": 32, "n_client_epochs": 2, "batch_size": 16, "device": "cpu"}
    run = prepare(resolve(settings))
    theta = run.server.theta
    return run.clients.trainer.client(0, 1).train(theta) - theta, run.server.layout


class Ours:
    """encode and decode of fedmerge/wire."""

    def __init__(self, layout):
        self.n, self.buffers = layout.n_trainable, layout.dim - layout.n_trainable

    def write(self, delta, mask):
        return wire.encode(wire.pack(ClientUpdate(delta, mask), self.n, 32))

    def read(self, data, out):
        message = wire.decode(data, self.n, self.buffers)
        message.unpack(out)
        return message.mask


class Bits:
    """A bitmap by np.packbits, compressed, and the values kept; no header and no checksum."""

    def __init__(self, layout, compress=bytes, expand=bytes, everything=False):
        self.n, self.buffers, self.everything = layout.n_trainable, layout.dim - layout.n_trainable, everything
        self.compress, self.expand = compress, expand

    def write(self, delta, mask):
        delta, mask = delta.numpy(), mask.numpy()
        bits, values = np.packbits(mask), np.concatenate([delta.take(np.flatnonzero(mask)), delta[self.n :]])
        if self.everything:
            return self.compress(bits.tobytes() + values.tobytes())
        positions = self.compress(bits.tobytes())
        return b"".join([len(positions).to_bytes(8, "little"), positions, values.data])

    def read(self, data, out):
        if self.everything:
            bits, rest = np.split(np.frombuffer(self.expand(data), np.uint8), [-(-self.n // 8)])
        else:
            size = int.from_bytes(data[:8], "little")
            bits = np.frombuffer(self.expand(data[8 : 8 + size]), np.uint8)
            rest = np.frombuffer(data, np.uint8, offset=8 + size)
        values = rest.view(np.float32) if rest.ctypes.data % 4 == 0 else np.frombuffer(rest.tobytes(), np.float32)
        mask = np.unpackbits(bits, count=self.n).view(bool)
        delta = out.zero_().numpy()
        delta[np.flatnonzero(mask)] = values[: len(values) - self.buffers]
        delta[self.n :] = values[len(values) - self.buffers :]
        return torch.from_numpy(mask)


def entropy(q):
    return -q * math.log2(q) - (1 - q) * math.log2(1 - q)


def measure(codecs, delta, mask, rounds):
    """Return {name: (bytes, median seconds of writing, of reading)}; the codecs take turns."""
    seconds, sizes, out = {name: [] for name in codecs}, {}, torch.zeros_like(delta)
    for _ in range(rounds):
        for name, codec in codecs.items():
            begin = time.perf_counter()
            data = codec.write(delta, mask)
            written = time.perf_counter()
            where = codec.read(data, out)
            seconds[name].append((written - begin, time.perf_counter() - written))
            sizes[name] = len(data)
            assert torch.equal(out, delta), name
            assert torch.equal(where, mask), name
    return {name: (sizes[name], *map(statistics.median, zip(*seconds[name], strict=True))) for name in codecs}


def main():
    parser = argparse.ArgumentParser(description="Bytes and speed of the wire format beside general compressors.")
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    trained, layout = trained_update()
    n, dense = layout.n_trainable, 4 * layout.dim
    pack, unpack = zstandard.ZstdCompressor(3).compress, zstandard.ZstdDecompressor().decompress
    codecs = {
        "fedmerge": Ours(layout),
        "packbits": Bits(layout),
        "zlib": Bits(layout, lambda b: zlib.compress(b, 6), zlib.decompress),
        "zstd": Bits(layout, pack, unpack),
        "zstd, all": Bits(layout, pack, unpack, everything=True),
    }
    print(f"{n} weights, {layout.dim - n} buffers; torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| places | kept | by | bytes | bits a weight for positions | MB/s written | MB/s read | time |")
    print("|---|---|---|---|---|---|---|---|")
    g = torch.Generator().manual_seed(0)
    for q in (0.01, 0.2):
        mask = top_k_mask(trained[:n], q, layout.sizes)
        random = torch.zeros_like(mask).index_fill_(0, torch.randperm(n, generator=g)[: mask.sum()], True)
        moved = torch.cat([torch.zeros(n).masked_scatter_(random, trained[:n][mask]), trained[n:]])
        for places, delta, kept in (
            ("largest", torch.cat([trained[:n] * mask, trained[n:]]), mask),
            ("random", moved, random),
        ):
            found = measure(codecs, delta, kept, rounds)
            fastest = min(write + read for _, write, read in found.values())
            raw = 4 * (int(kept.sum()) + layout.dim - n)
            for name, (size, write, read) in found.items():
                bits = {"fedmerge": positions_bytes(delta, kept), "zstd, all": None}.get(name, size - raw)
                bits = "" if bits is None else f"{8 * bits / n:.4f}"
                bits += f" (entropy {entropy(q):.4f})" if name == "fedmerge" else ""
                speeds = f"{dense / write / 1e6:.0f} | {dense / read / 1e6:.0f}"
                print(f"| {places} | {q:.0%} | {name} | {size} | {bits} | {speeds} | {(write + read) / fastest:.2f} |")


def positions_bytes(delta, mask):
    """Return the bytes that fedmerge/wire takes for the positions: those of a message whose values take none."""
    one = wire.pack(ClientUpdate(torch.ones_like(delta), mask), len(mask), 1, torch.Generator())
    without = wire.Message(one.n_trainable, None, one.weights, one.tail)
    return wire.payload_bytes(one) - wire.payload_bytes(without)


if __name__ == "__main__":
    main()
