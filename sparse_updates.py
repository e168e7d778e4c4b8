"""What sparse updates are made with: which weights are kept, what becomes of the others, how the parts are stitched."""

import numpy as np
import torch


class ErrorFeedback:
    """What each client did not send, to be added to its next update (Seide et al. 2014; Stich et al. 2018).

    With a momentum, what is added up are the client's velocities, and the velocity of what was sent is forgotten (Lin
    et al. 2018, sections 3.1 and 3.2). Vectors are [n_trainable]; a client that is not sampled keeps its own.
    """

    def __init__(self, momentum=0.0):
        self.momentum = momentum
        self.left, self.velocity = {}, {}  # client -> vector

    def add(self, number, change):
        """Return what client `number` has to send, its newest `change` included."""
        if self.momentum:
            change = change + self.momentum * self.velocity.get(number, 0)
            self.velocity[number] = change
        self.left[number] = change + self.left.get(number, 0)
        return self.left[number]

    def sent(self, number, arrived, mask):
        """Take off what `arrived` of it, 0 where the `mask` is unset."""
        self.left[number] = self.left[number] - arrived
        if self.momentum:
            self.velocity[number] = torch.zeros_like(arrived) if mask is None else self.velocity[number] * ~mask

    def held(self):
        """Return {kind: {client: vector}}."""
        return {"left": self.left} | ({"update_velocity": self.velocity} if self.momentum else {})


class Localiser:
    """Chooses the weights that a client sends: `localiser(delta, start, client, keep) -> mask`, bool [n_trainable].

    sizes: of the layers; scope: "layer" keeps the share `keep` of each, "global" of all weights, "floor" of all weights
    but at least `keep * floor` of each layer; learning: None, or the keyword arguments with which the client refines
    that choice by magnitude on its data (local_training.Client.learn_mask).
    """

    def __init__(self, sizes, scope="layer", floor=0.1, learning=None):
        self.sizes = tuple(sizes) if scope != "global" else (sum(sizes),)
        self.floor, self.learning = floor if scope == "floor" else None, learning

    def __call__(self, delta, start, client, keep):
        mask = self.largest(delta, keep)
        return client.learn_mask(start, delta, mask, **self.learning) if self.learning else mask

    def largest(self, delta, keep):
        """Return the mask of the largest |delta|."""
        if self.floor is None:
            return top_k_mask(delta, keep, self.sizes)
        least = top_k_mask(delta, keep * self.floor, self.sizes)
        k = max(int(least.sum()), round(keep * len(delta)))
        return torch.zeros_like(least).index_fill_(0, delta.abs().masked_fill(least, torch.inf).topk(k).indices, True)


def top_k_mask(delta, keep, sizes):
    """Return the bool mask `[n]` of the largest |delta|, delta `[n]`: round(keep * size) of every block of `sizes`.

    At least one of each block is kept. The "dataless" localisation of He et al. 2024. What is not a number counts as
    larger than all, so that it is sent and found.
    """
    mask = torch.zeros_like(delta, dtype=torch.bool)
    for part, chosen in zip(delta.split(sizes), mask.split(sizes), strict=True):
        k = max(1, round(keep * len(part)))
        if not (part.device.type == "cpu" and part.dtype == torch.float32 and len(part) >= LARGE):
            chosen[part.abs().topk(k, sorted=False).indices] = True
        elif k < len(part):
            choose_largest(part.numpy(), k, chosen.numpy())
        else:
            chosen[:] = True
    return mask


LARGE = 2**12  # numbers from which on a sample pays
SAMPLE = 2**14
CHUNK = 2**18  # numbers that are looked at together, so that they stay in the cache


def choose_largest(part, k, chosen):
    """Set in `chosen`, bool [n], the k largest |part|, float32 [n] in NumPy, k < n; of equal ones the first.

    A random sample gives two bounds between which the k-th largest almost always lies. One pass finds what is above
    both and what lies between, about two in a hundred; only these are ordered. Were the bounds wrong, the pass is made
    again with all between them. Numbers are compared by their bits, without the sign, which order as they do.
    """
    bits, n = part.view(np.int32), len(part)
    size = min(SAMPLE, n // 8)
    sample = bits[(PLACES[:size] * n).astype(np.intp)] & SIGNLESS
    place, spread = size * (1 - k / n), 3 * (size * k / n * (1 - k / n)) ** 0.5 + 2
    i, j = max(0, int(place - spread)), min(size - 1, int(place + spread))
    sample.partition((i, j))
    low = sample[i] - 1 if place > spread else -1
    high = sample[j] if place + spread < size else SIGNLESS
    above, between = _divide(bits, low, high, chosen)
    if not 0 <= k - above <= len(between):
        above, between = _divide(bits, -1, SIGNLESS, chosen)
    if k > above:
        left = bits[between] & SIGNLESS
        limit = np.partition(left, len(left) - (k - above))[len(left) - (k - above)]  # the k-th largest
        larger = left > limit
        chosen[between[larger]] = True
        chosen[between[left == limit][: k - above - np.count_nonzero(larger)]] = True


SIGNLESS = np.int32(0x7FFFFFFF)
PLACES = np.random.default_rng(0).random(SAMPLE)  # where the sample is taken, as shares of the length


def _divide(bits, low, high, chosen):
    """Set in `chosen` what is above `high`; return how many these are, and the places of others above `low`."""
    scratch, other = np.empty(CHUNK, np.int32), np.empty(CHUNK, bool)
    above, between = 0, []
    for begin in range(0, len(bits), CHUNK):
        x, mine = bits[begin : begin + CHUNK], chosen[begin : begin + CHUNK]
        x = np.bitwise_and(x, SIGNLESS, out=scratch[: len(x)])
        np.greater(x, high, out=mine)
        above += np.count_nonzero(mine)
        near = np.greater(x, low, out=other[: len(x)])
        between.append(np.flatnonzero(np.not_equal(near, mine, out=near)) + begin)
    return above, np.concatenate(between)


def masked(change, mask, rest, out=None):
    """Return [dim]: `change [n]` where the bool `mask [n]` is set and 0 elsewhere, then `rest [dim - n]`."""
    n = len(change)
    out = change.new_empty(n + len(rest)) if out is None else out
    out[n:] = rest
    if change.device.type != "cpu":
        torch.mul(change, mask, out=out[:n])
        return out
    source, kept, result = (tensor.numpy() for tensor in (change, mask, out))
    ones = np.empty(CHUNK, source.dtype)
    for begin in range(0, n, CHUNK):  # both NumPy and torch would make numbers of the whole mask first
        end = min(begin + CHUNK, n)
        np.copyto(ones[: end - begin], kept[begin:end])
        np.multiply(source[begin:end], ones[: end - begin], out=result[begin:end])
    return out


class Stitcher:
    """Merges sparse updates: `stitcher(update, kept) -> step [dim]`.

    update [dim]: the clients' weighted mean, in which they have 0 where they kept nothing. kept
    [n_trainable]: the share of their weight that kept each weight, not needed with prior 1. Both are used up.

    A weight moves by the mean of those that kept it, where each of the others counts as `prior` of a vote for leaving
    it: with 0 this is the mean of those that kept it (He et al. 2024, with sample weights), with 1 the mean over all. A
    weight that nobody kept stays. Buffers `[dim - n_trainable]` are averaged over all clients.
    """

    def __init__(self, layout, prior=0.0):
        self.n, self.prior = layout.n_trainable, prior

    def __call__(self, update, kept):
        if self.prior != 1:
            # Nobody kept a weight: its update is 0, and stays so whatever it is divided by.
            votes = kept.mul_(1 - self.prior).add_(self.prior).clamp_min_(TINY)
            update[: self.n].div_(votes)
        return update


TINY = 1e-30  # less than the share of any client
