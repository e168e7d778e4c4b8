"""One run over several processes, on one machine or several: `torchrun --nproc_per_node 4 fedalg.py ...`.

Rank 0 is the server, and all ranks train: each a share of a round's clients, next to each other in the cohort's order.
What the server keeps from round to round is brought to all ranks before clients train. Whatever clients keep is at rank
0, and travels to who trains them and back, so that no other rank knows anything that a checkpoint would miss. Sums go
through the ranks in the order of the clients, piece by piece: the result is the same, to the last bit, with any number
of processes.

What is said in words goes through gloo, as JSON; vectors go through NCCL between GPUs.
"""

import signal

import torch

from fedmerge import merging
from fedmerge.checkpoint.policy import Interrupted
from fedmerge.client_update import Update
from fedmerge.errors import InputError
from fedmerge.simulation import rounds
from fedmerge.simulation.cohort import Cohort, Sent
from fedmerge.simulation.process_group import Lost
from fedmerge.simulation.run_state import state_of
from fedmerge.startup import NOT_FINISHED, SIGNALS


def shares(loads, n):
    """Return the (begin, end) of each of n consecutive parts of `loads`, numbers, whose largest sum is the least."""

    def cuts(most):
        ends, total = [], 0
        for i, load in enumerate(loads):
            if total and total + load > most:
                ends.append(i)
                total = 0
            total += load
        return [*ends, len(loads)]

    low, high = max(loads, default=0), sum(loads)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(cuts(middle)) <= n else (middle + 1, high)
    ends = cuts(high)
    ends += [len(loads)] * (n - len(ends))
    return list(zip([0, *ends], ends, strict=False))


def load_of(exp, number):
    """Return how many samples client `number` trains on in a round."""
    s, n = exp.trainer.settings, len(exp.parts[number])
    return n * s.epochs if s.max_steps is None else min(n * s.epochs, s.max_steps * s.batch_size)


def kept_by(exp, numbers):
    """Return [(kind, number, tensor)] of all that the clients `numbers` keep, in one order on all ranks."""
    return [
        (kind, number, held[number])
        for keeps in (exp.algorithm, exp.trainer.local)
        for kind, held in keeps.held().items()
        for number in numbers
        if number in held
    ]


def take_kept(exp, names, rank):
    """Receive from `rank` what [kind, number, form] of `names` say, and put it where clients keep it."""
    held = {**exp.algorithm.held(), **exp.trainer.local.held()}
    for kind, number, form in names:
        held[kind][number] = exp.ranks.receive(empty_of(form, exp.theta.device), rank)


def names_of(kept):
    """Return [(kind, number, form)], which is told before the tensors of `kept_by` are sent."""
    return [(kind, number, form_of(tensor)) for kind, number, tensor in kept]


def form_of(tensor):
    """Return the shape and the dtype of a tensor as plain values."""
    return list(tensor.shape), str(tensor.dtype).removeprefix("torch.")


def empty_of(form, device):
    """Return a tensor of what `form_of` returned, to be overwritten."""
    shape, dtype = form
    return torch.empty(shape, dtype=getattr(torch, dtype), device=device)


def own_of(exp):
    """Return [(place, name, value)] of what the server keeps: place 0 is the algorithm's, 1 the local method's."""
    stateful = enumerate((exp.algorithm, exp.trainer.local))
    return [(place, name, getattr(keeps, name)) for place, keeps in stateful for name in keeps.own]


def words_of(own):
    """Return [(place, name, number or None, form of a tensor)], which is told before the tensors are sent."""
    return [
        (place, name, None, form_of(value)) if torch.is_tensor(value) else (place, name, value, None)
        for place, name, value in own
    ]


def take_own(exp, told):
    """Receive from rank 0 what `words_of` told, and put it where the server keeps it."""
    stateful = exp.algorithm, exp.trainer.local
    for place, name, value, form in told:
        if form:
            value = empty_of(form, exp.theta.device)
            exp.ranks.broadcast(value)
        setattr(stateful[place], name, value)


def lead(exp, cohort, round, keeper=None):
    """Let all ranks train the Cohort of `round` and bring what the merge needs into it; for rank 0.

    Raises Lost if a rank is gone and Interrupted if a signal came; the state before the round is saved then.
    """
    before = state_of(exp) if keeper else None
    try:
        _lead(exp, cohort, round, keeper)
    except (Lost, Interrupted) as error:
        exp.cohort = None
        if keeper:
            keeper.checkpoints.save(before)
            keeper.heed(exp)  # a signal that all ranks heard explains why one of them is gone
            raise type(error)(f"{error}; saved after round {round - 1}, the same command goes on") from None
        raise


def _lead(exp, cohort, round, keeper):
    ranks, numbers, vector, n_done = exp.ranks, cohort.numbers, exp.theta, len(cohort.done)
    exp.cohort = None  # only whole rounds are saved; but a single process may have left a part of one
    plan = shares([load_of(exp, number) for number in numbers[n_done:]], ranks.size)
    plan = [(n_done + begin, n_done + end) for begin, end in plan]
    most = max(end - begin for begin, end in plan[1:])
    if most > rounds.rows_at_once(exp):
        raise InputError(f"a process has {most} updates of round {round} to hold: raise --max_cohort_memory")
    fetched = {number: exp.downlink.fetch(number) for number in numbers[n_done:]}
    cohort.down.update({number: size for number, (size, _) in fetched.items()})
    kept = [[], *(kept_by(exp, numbers[begin:end]) for begin, end in plan[1:])]
    own = own_of(exp)
    words = {"own": words_of(own), "kept": [names_of(share) for share in kept]}
    ranks.tell({"round": round, "plan": plan, **words})
    ranks.resting = False
    for _, _, value in own:
        if torch.is_tensor(value):
            ranks.broadcast(value.to(exp.theta.device).contiguous())
    if not own_starts(exp):
        ranks.broadcast(exp.downlink.model)
    for rank in range(1, ranks.size):
        for number in numbers[slice(*plan[rank])] if own_starts(exp) else ():
            ranks.send(fetched[number][1], rank)
        for _, _, tensor in kept[rank]:
            ranks.send(tensor, rank)
    mine, stop = numbers[: plan[0][1]], keeper and (lambda: keeper.asked is not None)
    for _ in rounds.train_clients(exp, cohort, mine, round, lambda number: fetched[number][1], stop):
        pass
    for rank in range(1, ranks.size):
        if keeper:
            keeper.heed(exp)
        told = ranks.report_of(rank)
        if "signal" in told:
            if not keeper:
                raise Lost(f"rank {rank} heard a signal and stopped")
            keeper.asked = told["signal"]
            keeper.heed(exp)
        cohort.done += [Sent.of(client, exp.device) for client in told["clients"]]
        take_kept(exp, told["kept"], rank)
    weights = [rounds.weight_of(exp.args, client) if client.finite() else 0 for client in cohort.done]
    ranks.tell({"weights": weights})
    chain = busy(plan)
    if any(chain):
        if exp.algorithm.means:
            _sum(exp, chain, cohort.sums, ())
        for rank in () if exp.algorithm.means else filter(None, chain):
            for i in range(*plan[rank]):
                ranks.receive(cohort.deltas[i], rank)
                if cohort.done[i].masked:
                    mask = ranks.receive(vector.new_empty(exp.model.layout.n_trainable, dtype=torch.uint8), rank)
                    cohort.mask_rows(mask)[i] = mask.bool()
    ranks.resting = True


def own_starts(exp):
    """Tell whether clients start from models of their own."""
    return exp.args.downlink == "individual"


def busy(plan):
    """Return the ranks that have clients, in the order of these."""
    return [rank for rank, (begin, end) in enumerate(plan) if end > begin]


def _sum(exp, chain, sums, updates):
    """Do this rank's part of the algorithm's sums: rank 0 has its own in `sums`, others have (Update, weight) pairs.

    chain: the ranks that have clients, in the order of these. Rank 0 ends with the totals.
    """
    ranks = exp.ranks
    place = chain.index(ranks.rank) if ranks.rank in chain else None
    for name in exp.algorithm.means:
        total = sums.total(name, exp.theta)

        def add(piece, begin, name=name):
            for update, weight in updates:
                if weight:
                    merging.add_to(piece, merging.MEANS[name](update, begin, begin + len(piece)), weight)

        if ranks.rank == 0:
            if place == 0:
                ranks.pass_on(total, None, None, chain[1])
            ranks.pass_on(total, None, chain[-1], None)
        elif place is not None:
            before = chain[place - 1] if place else None
            ranks.pass_on(total, add, before, chain[place + 1] if place + 1 < len(chain) else 0)


def serve(ranks, prepare):
    """Train for rank 0 until it says that the run is over; return the run's exit status. Raises Lost.

    prepare() -> fedalg.Experiment, when rank 0 has something to do.
    """
    asked = []
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: asked.append(number))  # rank 0 saves what there is
    try:
        exp, order = None, ranks.hear()
        while "status" not in order:
            if "prepare" in order:
                exp = prepare()
            elif "begin" in order:
                ranks.use(exp.device)
            else:
                _follow(exp, order, asked)
            order = ranks.hear()
    except Lost:
        if asked:
            return NOT_FINISHED
        raise
    return order["status"]


def _follow(exp, order, asked):
    ranks, round, (begin, end) = exp.ranks, order["round"], order["plan"][exp.ranks.rank]
    numbers = rounds.participants(exp, round)[0][begin:end]
    take_own(exp, order["own"])
    starts = dict.fromkeys(numbers, exp.theta)
    if own_starts(exp):
        starts = {number: ranks.receive(torch.empty_like(exp.theta), 0) for number in numbers}
    else:
        ranks.broadcast(exp.theta)
    take_kept(exp, order["kept"][ranks.rank], 0)
    if exp.deltas is None or len(exp.deltas) < len(numbers):
        exp.deltas = None  # before there is another
        exp.deltas = exp.theta.new_empty(len(numbers), exp.model.layout.dim)
    cohort = Cohort(numbers, [], merging.Sums(exp.algorithm.means, exp.model.layout), exp.deltas)
    with rounds.only_what_is_kept_changes(exp):
        for _ in rounds.train_clients(exp, cohort, numbers, round, starts.__getitem__, lambda: bool(asked)):
            pass
    if len(cohort.done) < len(numbers):
        ranks.report({"signal": asked[0]})
        ranks.hear()  # nothing comes: rank 0 ends
    kept = kept_by(exp, numbers)
    ranks.report({"clients": [client.plain() for client in cohort.done], "kept": names_of(kept)})
    for _, _, tensor in kept:
        ranks.send(tensor, 0)
    for number in numbers:
        exp.algorithm.forget(number)
        exp.trainer.local.forget(number)
    weights = ranks.hear()["weights"][begin:end]
    masks = [cohort.masks[i] if client.masked else None for i, client in enumerate(cohort.done)]
    updates = [Update(exp.deltas[i], mask) for i, mask in enumerate(masks)]
    if exp.algorithm.means:
        _sum(exp, busy(order["plan"]), cohort.sums, list(zip(updates, weights, strict=True)))
        return
    for update in updates:
        ranks.send(update.delta, 0)
        if update.mask is not None:
            ranks.send(update.mask.to(torch.uint8), 0)
