"""One round: clients download, train and send, and the server merges what arrives."""

import math
import sys
import time
from contextlib import contextmanager
from functools import partial

import torch

from fedmerge import merging, wire
from fedmerge.client_update import Update
from fedmerge.randomness import generator
from fedmerge.simulation.client_threads import used_here
from fedmerge.simulation.cohort import Cohort, Sent
from fedmerge.simulation.sampling import dropped, sample_clients

BYTES = ["bytes_up", "bytes_down", "bytes_up_total", "bytes_down_total"]


def participants(exp, round):
    """Return the numbers of the clients of `round` whose updates arrive, most samples first, and of the others."""
    args = exp.args
    numbers = sample_clients(args.n_clients, args.participation, args.seed, round, exp.empty)
    lost = dropped(numbers, args.dropout, args.seed, round) if args.dropout else []
    return sorted(set(numbers) - set(lost), key=lambda number: (-len(exp.parts[number]), number)), lost


def begin_round(exp, round):
    """Return the Cohort of `round`, of which none has trained yet."""
    numbers, lost = participants(exp, round)
    cohort = Cohort(numbers, lost, merging.Sums(exp.algorithm.means, exp.model.layout))
    if not exp.algorithm.means:
        if exp.deltas is None:
            exp.deltas = exp.theta.new_empty(len(numbers) + len(lost), exp.model.layout.dim)
        cohort.deltas = exp.deltas
    return cohort


def resume_round(exp, state):
    """Take back the Cohort's state() of the round under way, None between rounds."""
    exp.cohort = None
    if state is not None:
        exp.cohort = begin_round(exp, len(exp.rows) + 1)
        exp.cohort.load(state)


def train_round(exp, round, keeper=None):
    """Let the clients of `round` train, merge what they send into exp.theta, and return the round's row so far.

    keeper: a checkpoints.Keeper, which may save the run and end it. Raises FloatingPointError, before anything is
    merged, if a client's loss or update is not finite, unless --on_nan is skip.
    """
    exp.cohort = cohort = exp.cohort or begin_round(exp, round)
    started = time.perf_counter() - cohort.seconds
    with only_what_is_kept_changes(exp):
        exp.collect(exp, cohort, round, keeper)
    for number in cohort.lost:
        cohort.down[number], _ = exp.downlink.fetch(number)
    before = exp.algorithm.snapshot()
    row = {"epoch": round, **merge_round(exp, round, cohort)}
    exp.downlink.publish(exp.algorithm.broadcast(exp.theta))
    exp.algorithm.check_unchanged(before, "as the server merged", but=exp.algorithm.own)
    exp.cohort = None
    if exp.algorithm.sends:
        row |= count_bytes(exp, {client.number: client.bytes for client in cohort.done}, cohort.down)
    else:
        row |= count_bytes(exp, {}, dict.fromkeys(cohort.down, 0))
    return {**row, "train_seconds": time.perf_counter() - started}


@contextmanager
def only_what_is_kept_changes(exp):
    """Raise TypeError if the algorithm or the local method keeps something of the body where nobody would find it."""
    stateful = exp.algorithm, exp.trainer.local
    before = [keeps.snapshot() for keeps in stateful]
    yield
    for keeps, snapshot in zip(stateful, before, strict=True):
        keeps.check_unchanged(snapshot, "as clients trained")


def collect(exp, cohort, round, keeper=None):
    """Let all clients of the Cohort that are left train in this process, and take what they send.

    Once keeper.due(), no other client begins; when those that have are through, keeper.after_client(exp) is called.
    """
    started = time.perf_counter() - cohort.seconds

    def start_of(number):
        cohort.down[number], start = exp.downlink.fetch(number)
        return start

    while len(cohort.done) < len(cohort.numbers):
        for _ in train_clients(exp, cohort, cohort.numbers, round, start_of, keeper and keeper.due):
            cohort.seconds = time.perf_counter() - started
        if keeper:
            keeper.after_client(exp)


def train_clients(exp, cohort, numbers, round, start_of, pause=None):
    """Let the clients `numbers` of the Cohort that are left train, take what they send, and yield after each.

    start_of(number) -> the model [dim] that the client starts from. Once pause(), no other client begins.
    """

    def turns():
        for i, number in enumerate(numbers[len(cohort.done) :], len(cohort.done)):
            if cohort.deltas is not None:
                row = cohort.deltas[i]
            else:
                row = exp.spare_rows.pop() if exp.spare_rows else torch.empty_like(exp.theta)
            yield partial(train_client, exp, number, round, start_of(number), row)

    if exp.progress:
        exp.progress.begin(cohort, numbers)
    for client, update in exp.workers.run(turns(), rows_at_once(exp), pause):
        used_here(update.mask, *vars(client).values())
        cohort.take(client, update, weight_of(exp.args, client))
        if cohort.deltas is None:
            exp.spare_rows.append(update.delta)
        if exp.progress:
            exp.progress.after_client(cohort)
        yield client


def rows_at_once(exp):
    """Return how many updates [dim] --max_cohort_memory holds."""
    return int(exp.args.max_cohort_memory * 2**30) // (4 * exp.model.layout.dim)


def train_client(exp, number, round, start, row, trainer):
    """Let client `number` train from `start [dim]` and send; return its Sent and the Update that arrives.

    row [dim]: where to put that. trainer: the local_training.Trainer that is free for it.
    """
    stateful = exp.algorithm, trainer.local
    used_here(start, *(of_client.get(number) for keeps in stateful for of_client in keeps.held().values()))
    client = trainer.client(number, round)
    client.row = row
    update, size = send(exp, exp.algorithm.local_update(start, client), client)
    kept = exp.model.layout.n_trainable if update.mask is None else update.mask.sum()
    total = update.delta.sum()  # the cheapest pass that tells whether all of it is finite
    masked = update.mask is not None
    return Sent(number, client.n_samples, size, client.seen, client.loss, client.hits, total, kept, masked), update


def send(exp, update, client):
    """Send `update` from `client` to the server; return the Update that it decodes, in client.row, and its bytes."""
    args, n, real = exp.args, exp.model.layout.n_trainable, exp.args.wire == "real"
    if real and not update.delta.sum().isfinite():
        real = False  # no bytes for this; faults_of says whose it is
    rng = generator(args.seed, "rounding", client.round, client.number)
    message = wire.pack(update, n, args.value_bits, rng, client.round, client.number)
    size, message = wire.carry(message, real)
    arrived = Update(message.unpack(client.row), message.mask)
    exp.algorithm.delivered(client, arrived)
    return arrived, size


def merge_round(exp, round, cohort):
    """Merge what the Cohort sent into exp.theta; return the columns that tell of it.

    Where nothing arrived, the model stays as it is, and the train columns are empty.
    """
    args, n = exp.args, exp.model.layout.n_trainable
    figures, faults = faults_of(round, cohort.done)
    if faults and args.on_nan == "stop":
        raise FloatingPointError(f"{next(iter(faults.values()))}; try a smaller --lr, or --on_nan skip")
    for i, fault in faults.items():
        print(f"warning: {fault}: left out", file=sys.stderr)
        exp.algorithm.forget(cohort.done[i].number)
        exp.trainer.local.forget(cohort.done[i].number)
    whole = [i for i in range(len(cohort.done)) if i not in faults]
    if not whole:
        return {"clients": 0}
    exp.theta = exp.algorithm.merge(exp.theta, arrived_of(cohort, whole, args))
    losses, hits = figures[whole].sum(0).tolist()
    seen, kept = (sum(int(getattr(cohort.done[i], name)) for i in whole) for name in ("seen", "kept"))
    return {
        "train_losses": losses / seen,
        "train_accs": hits / seen,
        "kept_share": kept / (len(whole) * n),
        "clients": len(whole),
    }


def weight_of(args, client):
    """Return the weight of a client (Sent) in the merge."""
    return client.n_samples if args.weighting == "samples" else 1


def arrived_of(cohort, whole, args):
    """Return the merging.Arrived of the clients at the places `whole` of cohort.done."""
    weights = [weight_of(args, cohort.done[i]) for i in whole]
    if cohort.deltas is None:
        return merging.Arrived(cohort.sums.means(sum(weights)))
    deltas, masks = cohort.deltas[: len(cohort.done)], cohort.masks
    if masks is not None:
        masks = masks[: len(cohort.done)]
    if len(whole) < len(cohort.done):
        deltas, masks = deltas[whole], None if masks is None else masks[whole]
    return merging.all_of(deltas, masks, weights)


def faults_of(round, done):
    """Return the losses and hits of `done`, a list of Sent, float32 [clients, 2], and {place: what is not finite}.

    All figures of them are read from the device here, at once.
    """
    if not done:
        return torch.zeros(0, 2), {}
    figures = torch.stack([torch.stack([c.loss, c.hits, c.total]) for c in done]).cpu()
    faults = {}
    for i, (client, (loss, _, total)) in enumerate(zip(done, figures.tolist(), strict=True)):
        for what, value in (("update", total), ("loss", loss)):
            if not math.isfinite(value):
                faults[i] = f"round {round}, client {client.number}: the {what} is not finite"
    return figures[:, :2], faults


def count_bytes(exp, up, down):
    """Add the bytes {client: bytes} of a round to exp.traffic; return the row's columns."""
    for number in down:
        rounds, *sent = exp.traffic.get(number, (0, 0, 0))
        exp.traffic[number] = [rounds + 1, sent[0] + up.get(number, 0), sent[1] + down[number]]
    totals = [sum(client[i] for client in exp.traffic.values()) for i in (1, 2)]
    return dict(zip(BYTES, [sum(up.values()), sum(down.values()), *totals], strict=True))
