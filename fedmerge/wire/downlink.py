"""What clients download, counted for each of them: who was away for five rounds has more to catch up with.

After every round the server publishes a model. It knows the last round in which each weight changed, and the size of
every broadcast; a client that comes back pays for what it missed.
"""

import math

import torch

from fedmerge.client_update import ClientUpdate
from fedmerge.compressors.largest import top_k_mask
from fedmerge.randomness import generator
from fedmerge.wire.message import carry, decode, dense_bytes, encode, pack, payload_bytes


class Downlink:
    """The server's side of the downloads; `model [dim]` is the newest published.

    mode: "dense", the whole model every time; "delta", exactly what changed; "sparse", of every round the largest
    changes only, a share `keep` in `bits` a value, while the server keeps the rest for later rounds, so that `model`
    lags behind (Sattler et al. 2019, Algorithm 2); "individual", to each client the largest differences between the
    model and what this client holds, which the server remembers, [dim] for each of them.

    In the first three modes a client pays for the broadcasts it missed or for the weights that changed meanwhile,
    whichever is less, never for more than the whole model, and then holds `model`. At first contact it gets the whole
    model, unless `shared_init`: then everybody can make the initial model, from the seed or a public file.

    With `real`, everything is made bytes and read again, and each client's own copy is compared with `model`, except in
    the last mode, where it is all there is. Copies that are the same lie in memory once, and of the broadcasts only the
    newest are kept, as many as a client may be sent: all together, they are not larger than the whole model.
    """

    def __init__(
        self, start, layout, n_clients, mode="delta", bits=32, keep=0.01, shared_init=False, seed=0, real=False
    ):
        self.model, self.n, self.mode = start, layout.n_trainable, mode
        self.bits, self.keep, self.seed, self.real = bits, keep, seed, real
        self.version = 0  # rounds published
        self.seen = [0 if shared_init else None] * n_clients  # the version each client holds
        self.changed_at = torch.zeros(self.n, dtype=torch.int32, device=start.device)  # the version, of each weight
        self.sizes = []  # bytes of the newest broadcasts, the last one that of this version
        self.messages = {}  # version -> the bytes themselves, of these broadcasts, if `real`
        self.copies = dict.fromkeys(range(n_clients), start) if shared_init and (real or mode == "individual") else {}
        self._new_version()

    def _new_version(self):
        self.ways = {}  # since -> (bytes, messages as bytes, whether they add), of this version
        self.exact_ways = {}  # number of weights changed -> (bytes, message as bytes) of their new values
        self.updated = {}  # since -> the copy [dim] of that version that has become this one
        self.latest = None  # what all of them became, [dim]

    def publish(self, target):
        """Make `target [dim]`, or what of it goes into a sparse broadcast, the next version."""
        self.version += 1
        self._new_version()
        if self.mode in ("dense", "individual"):
            self.model = target
            return
        before, sparse = self.model, self.mode == "sparse"
        if sparse:
            message = self._largest(target - before, "all")
        else:
            message = self._exact(target[: self.n] != before[: self.n], target)
        size, data = self._written(message)
        self.model = receive(before, self._read(data) if self.real else message, adds=sparse)
        self.changed_at.masked_fill_(self.model[: self.n] != before[: self.n], self.version)
        self.sizes.append(size)
        if self.real:
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

    def fetch(self, number):
        """Bring client `number` up to date; return the bytes that it downloads, and the model [dim] it then holds."""
        since, self.seen[number] = self.seen[number], self.version
        if self.mode == "individual":
            return self._bring_nearer(number, since)
        if since not in self.ways:
            self.ways[since] = self._way(since)
        if self.real:
            self._update_copy(number, since)
        return self.ways[since][0], self.model

    def _update_copy(self, number, since):
        """Make the client's copy anew of the bytes that it gets. Raises AssertionError if it is not `model` then."""
        before = self.copies.get(number)
        if since not in self.updated or self.updated[since] is not before:  # else another had and got the very same
            _, messages, adds = self.ways[since]
            copy = torch.full_like(self.model, torch.nan) if before is None else before
            for data in messages:
                copy = receive(copy, self._read(data), adds)
            if not torch.equal(copy, self.model):
                raise AssertionError(f"client {number} does not hold the server's model")
            self.updated[since] = before
            self.latest = copy if self.latest is None else self.latest
        self.copies[number] = self.latest

    def _bring_nearer(self, number, since):
        """Do what `fetch` does, in mode "individual"."""
        if since is None:
            size, message = carry(pack(ClientUpdate(self.model), self.n, 32), self.real)
            self.copies[number] = receive(self.model, message, adds=False)
        elif since < self.version:
            size, message = carry(self._largest(self.model - self.copies[number], number), self.real)
            self.copies[number] = receive(self.copies[number], message, adds=True)
        else:
            size = 0
        return size, self.copies[number]

    def state(self):
        """Return {name: tensors and plain values}: all that is to be known of the rounds published so far."""
        return {
            "model": self.model,
            "version": self.version,
            "seen": list(self.seen),
            "changed_at": self.changed_at,
            "sizes": list(self.sizes),
            "messages": {v: torch.frombuffer(bytearray(data), dtype=torch.uint8) for v, data in self.messages.items()},
            "copies": dict(self.copies),
        }

    def load(self, state):
        """Take back what `state()` returned. Raises payload.PayloadError, and takes nothing, if a message is none."""
        messages = {version: data.cpu().numpy().tobytes() for version, data in state["messages"].items()}
        for data in messages.values():
            self._read(data)
        self.model, self.version, self.changed_at = state["model"], state["version"], state["changed_at"]
        self.seen, self.copies = list(state["seen"]), dict(state["copies"])
        self.sizes = list(state["sizes"])
        self.messages = messages
        self._new_version()

    def _written(self, message):
        """Return the bytes of a Message, and, if `real`, the Message as bytes."""
        if not self.real:
            return payload_bytes(message), None
        data = encode(message)
        return len(data), data

    def _read(self, data):
        return decode(data, self.n, len(self.model) - self.n, self.model.device)

    def _way(self, since):
        """Return (bytes, messages, whether they add) of the cheapest way to this version from `since`, None if new."""
        if since == self.version:
            return 0, [], False
        if self.mode == "dense" or since is None:
            return self._whole()
        changed = self.changed_at > since
        n_changed = int(changed.sum())  # of two sets of weights changed since some version one holds the other
        if n_changed not in self.exact_ways:
            self.exact_ways[n_changed] = self._written(self._exact(changed, self.model))
        size, data = self.exact_ways[n_changed]
        n_missed = self.version - since
        missed = sum(self.sizes[-n_missed:]) if n_missed <= len(self.sizes) else math.inf
        if min(missed, size) > dense_bytes(len(self.model)):
            return self._whole()
        if missed < size:
            missing = range(since + 1, self.version + 1)
            return missed, [self.messages[v] for v in missing] if self.real else [], self.mode == "sparse"
        return size, [data], False

    def _whole(self):
        """Return the way on which the whole model is sent."""
        size, data = self._written(pack(ClientUpdate(self.model), self.n, 32))
        return size, [data], False

    def _exact(self, changed, model):
        """Return the Message of the new values of the weights `changed`, bool [n_trainable], and of all buffers."""
        return pack(ClientUpdate(model, changed), self.n, 32, round=self.version)

    def _largest(self, change, receiver):
        """Return the Message of the largest of the changes [dim] that wait for `receiver`."""
        mask = None
        if self.keep < 1:
            mask = top_k_mask(change[: self.n], self.keep, (self.n,)) & (change[: self.n] != 0)
        rng = generator(self.seed, "rounding", self.version, "down", receiver)
        return pack(ClientUpdate(change, mask), self.n, self.bits, rng, self.version)


def receive(model, message, adds):
    """Return the model [dim] that a client makes of its own and a Message of changes (`adds`) or of new values."""
    arrived = message.unpack(torch.empty_like(model))
    if adds:
        return model + arrived
    if message.mask is not None:
        n = message.n_trainable
        arrived[:n] = torch.where(message.mask, arrived[:n], model[:n])
    return arrived
