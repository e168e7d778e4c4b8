"""The largest entries of a vector, found fast."""

import numpy as np
import torch


def top_k_mask(delta, keep, sizes):
    """Return the bool mask `[n]` of the largest |delta|, delta `[n]`: round(keep * size) of every block of `sizes`.

    At least one of each block is kept; of equal ones the first, on every device. The "dataless" localisation of He et
    al. 2024. What is not a number counts as larger than all, so that it is sent and found.
    """
    mask = torch.zeros_like(delta, dtype=torch.bool)
    for part, chosen in zip(delta.split(sizes), mask.split(sizes), strict=True):
        mark_largest(part, max(1, round(keep * len(part))), chosen)
    return mask


def mark_largest(part, k, chosen):
    """Set in `chosen`, bool [n], all False, the k largest |part|, [n], k > 0; of equal ones the first."""
    if k >= len(part):
        chosen[:] = True
    elif part.device.type == "cpu" and part.dtype == torch.float32:
        choose_largest(part.numpy(), k, chosen.numpy())
    else:
        bits = part.view(BITS[part.dtype])
        bits = bits & torch.iinfo(bits.dtype).max  # without the sign: these order as the numbers do
        limit = bits.topk(k, sorted=False).values.min()
        equal = bits == limit
        torch.gt(bits, limit, out=chosen)
        first = equal.cumsum(0, dtype=torch.int32) <= k - chosen.sum()  # nothing here waits for a GPU
        chosen |= equal & first


BITS = {torch.float32: torch.int32, torch.float64: torch.int64, torch.bfloat16: torch.int16, torch.float16: torch.int16}
LARGE = 2**12  # numbers from which on a sample pays
SAMPLE = 2**14
CHUNK = 2**18  # numbers that are looked at together, so that they stay in the cache


def choose_largest(part, k, chosen):
    """Set in `chosen`, bool [n], the k largest |part|, float32 [n] in NumPy, k < n; of equal ones the first.

    A random sample gives two bounds between which the k-th largest almost always lies. One pass finds what is above
    both and what lies between, about two in a hundred; only these are ordered. Were the bounds wrong, the pass is made
    again with all between them, as it is at once for few numbers. Numbers are compared by their bits, without the sign,
    which order as they do.
    """
    bits = part.view(np.int32)
    above, between = _divide(bits, *(_bounds(bits, k) if len(bits) >= LARGE else ALL), chosen)
    if not 0 <= k - above <= len(between):
        above, between = _divide(bits, *ALL, chosen)
    if k > above:
        left = bits[between] & SIGNLESS
        limit = np.partition(left, len(left) - (k - above))[len(left) - (k - above)]  # the k-th largest
        larger = left > limit
        chosen[between[larger]] = True
        chosen[between[left == limit][: k - above - np.count_nonzero(larger)]] = True


def _bounds(bits, k):
    """Return two numbers between which the k-th largest of `bits` almost always lies."""
    n = len(bits)
    size = min(SAMPLE, n // 8)
    sample = bits[(PLACES[:size] * n).astype(np.intp)] & SIGNLESS
    place, spread = size * (1 - k / n), 3 * (size * k / n * (1 - k / n)) ** 0.5 + 2
    i, j = max(0, int(place - spread)), min(size - 1, int(place + spread))
    sample.partition((i, j))
    return sample[i] - 1 if place > spread else -1, sample[j] if place + spread < size else SIGNLESS


SIGNLESS = np.int32(0x7FFFFFFF)
ALL = -1, SIGNLESS  # bounds between which all numbers lie
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
