"""What clients download, counted for each of them: who was away for five rounds has more to catch up with.

After every round the server publishes a model. It knows the last round in which each weight changed, and the size of
every broadcast; a client that comes back pays for what it missed.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from fedmerge.client_update import ClientUpdate
from fedmerge.compressors.largest import top_k_mask
from fedmerge.randomness import generator
from fedmerge.wire.message import decode, dense_bytes, encode, pack, payload_bytes, transmit


@dataclass(frozen=True)
class DownlinkSettings:
    """How a Downlink sends.

    mode: "dense", the whole model every time; "delta", exactly what changed; "sparse", of every round the largest
    changes only, while the server keeps the rest for later rounds, so that `model` lags behind (Sattler et al. 2019,
    Algorithm 2); "individual", to each client the largest differences between the model and what this client holds,
    which the server remembers, [dim] for each of them.
    """

    mode: str = "delta"
    keep: float = 0.01  # share of the weights in a message of the largest changes, in (0, 1]
    bits: int = 32  # of a value in such a message, a key of FORMATS; all others are exact
    shared_init: bool = False  # everybody can make the initial model, from the seed or a public file
    real: bool = False  # make the bytes of every message and read them again, instead of counting them
    seed: int = 0  # of the rounding


class CatchUp(NamedTuple):
    """What brings a client from one version to the newest."""

    bytes: int  # of all its messages
    messages: list  # these as bytes, in order, if `real`
    additive: bool  # whether they hold changes, and not new values

    @classmethod
    def of(cls, written, additive=False):
        """Return the one of a single message, (bytes, message as bytes or None)."""
        size, data = written
        return cls(size, [data], additive)


class Downlink:
    """The server's side of the downloads; `model [dim]` is the newest published.

    The first n_trainable of its numbers are weights. All behind them, the model's buffers and what an algorithm
    broadcasts besides, goes whole into every message; but for buffers, if n_buffers are given, which are left out where
    the receiver has them.

    Except in mode "individual", a client pays for the broadcasts it missed or for the weights that changed meanwhile,
    whichever is less, never for more than the whole model, and then holds `model`. At first contact it gets the whole
    model, unless the initial one is shared.

    With `real`, each client's own copy is compared with `model`, except in mode "individual", where it is all there
    is. Copies that are the same lie in memory once, and of the broadcasts only the newest are kept, as many as a client
    may be sent: all together, they are not larger than the whole model.
    """

    def __init__(self, start, n_trainable, n_clients, settings, n_buffers=0):
        """start [dim]: the initial model. settings: DownlinkSettings."""
        self.model, self.n, self.settings, self.n_buffers = start, n_trainable, settings, n_buffers
        shared, keeps_copies = self.settings.shared_init, self.settings.real or self.settings.mode == "individual"
        self.version = 0  # rounds published
        self.seen = [0 if shared else None] * n_clients  # the version each client holds
        self.changed_at = torch.zeros(self.n, dtype=torch.int32, device=start.device)  # the version, of each weight
        self.buffers_at = 0  # the version in which buffers changed
        self.sizes = []  # bytes of the newest broadcasts, the last one that of this version
        self.messages = {}  # version -> the bytes themselves, of these broadcasts, if `real`
        self.copies = dict.fromkeys(range(n_clients), start) if shared and keeps_copies else {}
        self._new_version()

    def _new_version(self):
        self.catch_ups = {}  # since -> the cheapest CatchUp to this version
        self.exact = {}  # (number of weights changed, numbers skipped) -> the CatchUp of their new values
        self.updated = {}  # since -> the copy [dim] of that version that has become this one
        self.latest = None  # what all of them became, [dim]

    def publish(self, target, buffers=True):
        """Make `target [dim]`, or what of it goes into a sparse broadcast, the next version.

        buffers: whether they have changed.
        """
        self.version += 1
        self.buffers_at = self.version if buffers else self.buffers_at
        self._new_version()
        if self.settings.mode in ("dense", "individual"):
            self.model = target
            return
        before, sparse = self.model, self.settings.mode == "sparse"
        if sparse:
            message = self._largest(target - before, "all", self.version - 1)
        else:
            message = self._exact(target[: self.n] != before[: self.n], target, self._skipped(self.version - 1))
        size, data = self._written(message)
        self.model = receive(before, self._read(data) if self.settings.real else message, additive=sparse)
        self.changed_at.masked_fill_(self.model[: self.n] != before[: self.n], self.version)
        self.sizes.append(size)
        if self.settings.real:
            self.messages[self.version] = data
        self._drop_broadcasts()

    def _drop_broadcasts(self):
        """Forget the broadcasts that nobody will be sent any more.

        These are those that all clients have, and those which, with all that followed, take more bytes than the whole
        model: a client that lacks them gets this, or what changed.
        """
        oldest = min((version for version in self.seen if version is not None), default=self.version)
        del self.sizes[: max(0, len(self.sizes) - (self.version - oldest))]
        while sum(self.sizes) > dense_bytes(len(self.model)):
            del self.sizes[0]
        first = self.version - len(self.sizes) + 1
        self.messages = {version: data for version, data in self.messages.items() if version >= first}

    def download(self, client_id):
        """Bring client `client_id` up to date; return the bytes that it downloads, and the model [dim] it then holds.

        Raises AssertionError if, with `real`, what the client makes of these bytes is not `model`.
        """
        since, self.seen[client_id] = self.seen[client_id], self.version
        if self.settings.mode == "individual":
            return self._bring_nearer(client_id, since)
        catch_up = self.cheapest_catch_up(since)
        if self.settings.real:
            self._update_copy(client_id, since, catch_up)
        return catch_up.bytes, self.model

    def cheapest_catch_up(self, since):
        """Return the CatchUp of the fewest bytes from version `since` to the newest; `since` is None for a new client.

        Not of mode "individual", where each client's model is another.
        """
        if since not in self.catch_ups:
            self.catch_ups[since] = self._cheapest(since)
        return self.catch_ups[since]

    def _cheapest(self, since):
        if since == self.version:
            return CatchUp(0, [], additive=False)
        if self.settings.mode == "dense" or since is None:
            return self._whole()
        exact, n_missed = self._what_changed(since), self.version - since
        missed = sum(self.sizes[-n_missed:]) if n_missed <= len(self.sizes) else math.inf
        if min(missed, exact.bytes) > dense_bytes(len(self.model)):
            return self._whole()
        if missed < exact.bytes:
            missing = range(since + 1, self.version + 1) if self.settings.real else ()
            return CatchUp(missed, [self.messages[v] for v in missing], self.settings.mode == "sparse")
        return exact

    def _whole(self):
        """Return the CatchUp in which the whole model is sent."""
        return CatchUp.of(self._written(pack(ClientUpdate(self.model), self.n, 32)))

    def _what_changed(self, since):
        """Return the CatchUp of the new values of all weights that changed after version `since`."""
        changed, skip = self.changed_at > since, self._skipped(since)
        key = int(changed.sum()), skip  # of two sets of weights changed since some version one holds the other
        if key not in self.exact:
            self.exact[key] = CatchUp.of(self._written(self._exact(changed, self.model, skip)))
        return self.exact[key]

    def _update_copy(self, client_id, since, catch_up):
        """Make the client's copy anew of the bytes that it gets. Raises AssertionError if it is not `model` then."""
        before = self.copies.get(client_id)
        if since not in self.updated or self.updated[since] is not before:  # else another had and got the very same
            copy = torch.full_like(self.model, torch.nan) if before is None else before
            for data in catch_up.messages:
                copy = receive(copy, self._read(data), catch_up.additive)
            if not torch.equal(copy, self.model):
                raise AssertionError(f"client {client_id} does not hold the server's model")
            self.updated[since] = before
            self.latest = copy if self.latest is None else self.latest
        self.copies[client_id] = self.latest

    def _bring_nearer(self, client_id, since):
        """Do what `download` does, in mode "individual"."""
        if since is None:
            size, message = transmit(pack(ClientUpdate(self.model), self.n, 32), self.settings.real)
            self.copies[client_id] = receive(self.model, message, additive=False)
        elif since < self.version:
            lacks = self.model - self.copies[client_id]
            size, message = transmit(self._largest(lacks, client_id, since), self.settings.real)
            self.copies[client_id] = receive(self.copies[client_id], message, additive=True)
        else:
            size = 0
        return size, self.copies[client_id]

    def _skipped(self, since):
        """Return how many numbers behind the weights a message leaves out for who has version `since`."""
        return 0 if self.buffers_at > since else self.n_buffers

    def _exact(self, changed, model, skip):
        """Return the Message of the new values of the weights `changed`, bool [n_trainable], and of all behind them,
        but for the first `skip`.
        """
        return pack(ClientUpdate(model, changed), self.n, 32, round=self.version, skip=skip)

    def _largest(self, change, receiver, since):
        """Return the Message of the largest of the changes [dim] that wait for `receiver`, who has version `since`."""
        mask, keep = None, self.settings.keep
        if keep < 1:
            mask = top_k_mask(change[: self.n], keep, (self.n,)) & (change[: self.n] != 0)
        rng = generator(self.settings.seed, "rounding", self.version, "down", receiver)
        change, skip = ClientUpdate(change, mask), self._skipped(since)
        return pack(change, self.n, self.settings.bits, rng, self.version, skip=skip)

    def _written(self, message):
        """Return the bytes of a Message, and, if `real`, the Message as bytes."""
        if not self.settings.real:
            return payload_bytes(message), None
        data = encode(message)
        return len(data), data

    def _read(self, data):
        return decode(data, self.n, len(self.model) - self.n, self.model.device, self.n_buffers)

    def state_dict(self):
        """Return {name: tensors and plain values}: all that is to be known of the rounds published so far."""
        return {
            "model": self.model,
            "version": self.version,
            "buffers_at": self.buffers_at,
            "seen": list(self.seen),
            "changed_at": self.changed_at,
            "sizes": list(self.sizes),
            "messages": {v: torch.frombuffer(bytearray(data), dtype=torch.uint8) for v, data in self.messages.items()},
            "copies": dict(self.copies),
        }

    def load_state_dict(self, state):
        """Take back what `state_dict()` returned. Raises PayloadError, and takes nothing, if a message is none."""
        messages = {version: data.cpu().numpy().tobytes() for version, data in state["messages"].items()}
        for data in messages.values():
            self._read(data)
        self.model, self.version, self.changed_at = state["model"], state["version"], state["changed_at"]
        self.seen, self.copies = list(state["seen"]), dict(state["copies"])
        self.sizes, self.buffers_at = list(state["sizes"]), state["buffers_at"]
        self.messages = messages
        self._new_version()


def receive(model, message, additive):
    """Return the model [dim] that a client makes of its own and a Message of changes (`additive`) or of new values."""
    arrived = message.unpack(torch.empty_like(model))
    if additive:
        return model + arrived
    n = message.n_trainable
    if message.mask is not None:
        arrived[:n] = torch.where(message.mask, arrived[:n], model[:n])
    arrived[n : n + message.skipped] = model[n : n + message.skipped]
    return arrived
