"""The processes of a run, and what they say to one another.

What is said in words goes through gloo, as JSON; vectors go through NCCL between GPUs.
"""

import contextlib
import datetime
import json
import os

import torch
import torch.distributed as dist

from fedmerge.errors import InputError
from fedmerge.startup import killed_by_signals

PIECE = 2**20  # numbers that travel together, so that the ranks of a sum work at once
FOR_EVER = datetime.timedelta(days=365)  # who dies closes its connections, and who is slow is waited for


class PeerLost(OSError):
    """Another process of the run is gone, or cannot be reached."""


@contextlib.contextmanager
def talking():
    """Turn what torch says of broken connections into PeerLost."""
    try:
        yield
    except RuntimeError as error:  # torch.distributed has a dozen kinds
        lines = str(error).splitlines() or [type(error).__name__]
        raise PeerLost(f"another process of this run ended, or cannot be reached ({lines[0]})") from None


def as_bytes(tensor):
    """Return a contiguous tensor as the bytes [k] that it is made of: gloo does not carry every kind."""
    return tensor.view(-1).view(torch.uint8)


class ProcessGroup:
    """The processes of a run, as torchrun or srun started them; `rank` is this one, of `size`."""

    def __init__(self, rank, size, local_rank):
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self.vectors = None  # the group that carries vectors; None = the default one
        self.resting = True  # whether the others wait for an order
        with talking(), killed_by_signals():  # it may wait for the others for ever
            dist.init_process_group("gloo", rank=rank, world_size=size, timeout=FOR_EVER)

    @classmethod
    def join(cls):
        """Return the ProcessGroup that the environment tells of, None if this process is alone.

        Raises PeerLost and InputError.
        """
        size = int(os.environ.get("WORLD_SIZE", 1))
        if size == 1:
            return None
        if "RANK" not in os.environ:
            raise InputError(f"WORLD_SIZE is {size} and RANK is not set: start it by torchrun, or unset WORLD_SIZE")
        rank = int(os.environ["RANK"])
        return cls(rank, size, int(os.environ.get("LOCAL_RANK", rank)))

    def use(self, device):
        """Carry vectors of this torch.device from now on."""
        if device.type == "cuda":
            torch.cuda.set_device(device)
            with talking():
                self.vectors = dist.new_group(backend="nccl")

    def leave(self):
        """Close the connections."""
        with contextlib.suppress(Exception):
            dist.destroy_process_group()

    def tell(self, what):
        """Say `what`, made of plain values, to all other ranks; only for rank 0."""
        text = torch.frombuffer(bytearray(json.dumps(what).encode()), dtype=torch.uint8)
        with talking():
            dist.broadcast(torch.tensor([len(text)]), 0)
            dist.broadcast(text, 0)

    def hear(self):
        """Return what rank 0 says."""
        size = torch.zeros(1, dtype=torch.int64)
        with talking():
            dist.broadcast(size, 0)
            text = torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(text, 0)
        return json.loads(text.numpy().tobytes())

    def report(self, what):
        """Say `what`, made of plain values, to rank 0."""
        text = torch.frombuffer(bytearray(json.dumps(what).encode()), dtype=torch.uint8)
        with talking():
            dist.send(torch.tensor([len(text)]), 0)
            dist.send(text, 0)

    def report_of(self, rank):
        """Return what `rank` reports."""
        size = torch.zeros(1, dtype=torch.int64)
        with talking():
            dist.recv(size, rank)
            text = torch.empty(int(size), dtype=torch.uint8)
            dist.recv(text, rank)
        return json.loads(text.numpy().tobytes())

    def broadcast(self, vector):
        """Overwrite a contiguous `vector` of any shape and kind, on all ranks but the first, with that of rank 0."""
        with talking():
            dist.broadcast(as_bytes(vector), 0, group=self.vectors)

    def send(self, vector, rank):
        """Send `vector`, of any shape and kind, to `rank`."""
        with talking():
            dist.send(as_bytes(vector.contiguous()), rank, group=self.vectors)

    def receive(self, vector, rank):
        """Overwrite a contiguous `vector` with the one of its shape and kind that `rank` sends; return it."""
        with talking():
            dist.recv(as_bytes(vector), rank, group=self.vectors)
        return vector

    def pass_on(self, total, add, before, after):
        """Do this rank's part of a sum: add(piece, begin), if given, to each piece of `total [k]`.

        before: the rank whose part comes first, None if this one begins; after: the rank that is next, or None.
        """
        sent, length = [], len(total) if total.is_cuda else PIECE  # between two GPUs, NCCL does one thing at a time
        for begin in range(0, len(total), length):
            piece = total[begin : begin + length]
            if before is not None:
                self.receive(piece, before)
            if add is not None:
                add(piece, begin)
            if after is not None:
                with talking():
                    sent.append(dist.isend(as_bytes(piece), after, group=self.vectors))
        with talking():
            for request in sent:
                request.wait()
