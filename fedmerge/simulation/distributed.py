"""One run over several processes, on one machine or several: `torchrun --nproc_per_node 4 -- fedalg.py ...`.

Rank 0 is the server, and all ranks train: each a share of a round's clients, next to each other in the cohort's order.
What the server keeps from round to round is brought to all ranks before clients train. Whatever clients keep is at rank
0, and travels to who trains them and back, so that no other rank knows anything that a checkpoint would miss. Sums go
through the ranks in the order of the clients, piece by piece: the result is the same, to the last bit, with any number
of processes.
"""

import signal
import time

import torch

from fedmerge import merging
from fedmerge.checkpoint.policy import Interrupted
from fedmerge.errors import InputError
from fedmerge.simulation.backend import only_what_is_kept_changes
from fedmerge.simulation.cohort import ClientResult, Cohort
from fedmerge.simulation.process_group import PeerLost
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


class _Sharing:
    """What both ends of a round do: the server, and who trains for it."""

    def __init__(self, server, clients, group):
        self.server, self.clients, self.group = server, clients, group

    def kept_by(self, ids):
        """Return [(name, client, tensor)] of all that these clients keep, in one order on all ranks."""
        kept = self.clients.kept().items()
        return [(name, client_id, of[client_id]) for name, of in kept for client_id in ids if client_id in of]

    def take_kept(self, told, rank):
        """Receive from `rank` what [(name, client, form)] of `told` say, and put it where clients keep it."""
        kept = self.clients.kept()
        for name, client_id, form in told:
            kept[name][client_id] = self.group.receive(empty_of(form, self.server.theta.device), rank)

    @property
    def own_starts(self):
        """Whether clients start from models of their own."""
        return self.server.settings.downlink == "individual"

    def sum_up(self, chain, sums, updates):
        """Do this rank's part of the merge's sums: rank 0 has its own in `sums`, others have (update, weight) pairs; a
        weight is None where something is not finite.

        chain: the ranks that have clients, in the order of these. Rank 0 ends with the totals.
        """
        group = self.group
        place = chain.index(group.rank) if group.rank in chain else None
        for name, statistic in sums.statistics.items():
            total = sums.total(name, self.server.theta)

            def add(piece, begin, statistic=statistic):
                for update, weight in updates:
                    if weight is not None:
                        stretch = statistic.stretch(update, begin, begin + len(piece))
                        merging.add_to(piece, stretch, weight if statistic.weighted else 1)

            if group.rank == 0:
                if place == 0:
                    group.pass_on(total, None, None, chain[1])
                group.pass_on(total, None, chain[-1], None)
            elif place is not None:
                before = chain[place - 1] if place else None
                group.pass_on(total, add, before, chain[place + 1] if place + 1 < len(chain) else 0)


class ProcessBackend(_Sharing):
    """Trains in all processes of a ProcessGroup; for rank 0."""

    @property
    def n_processes(self):
        return self.group.size

    def train(self, cohort, saver=None):
        """Let all ranks train the Cohort and bring what the merge needs into it.

        Raises PeerLost if a rank is gone and Interrupted if a signal came; the state before the round is saved then.
        """
        before = saver.run.state_dict() if saver else None
        try:
            with only_what_is_kept_changes(self.clients):
                self._train(cohort, saver)
        except (PeerLost, Interrupted) as error:
            if saver:
                saver.checkpoints.save(before)
                saver.raise_if_stopped()  # a signal that all ranks heard explains why one is gone
                said = f"{error}; saved after round {cohort.round - 1}, the same command goes on"
                raise type(error)(said) from None
            raise

    def _train(self, cohort, saver):
        started = time.perf_counter() - cohort.seconds
        plan = self._plan(cohort)
        left = cohort.ids[len(cohort.done) :]
        downloads = {client_id: self.server.downlink.download(client_id) for client_id in left}
        self.server.cohort = None  # only whole rounds are saved; but a single process may have left a part of one
        cohort.down.update({client_id: size for client_id, (size, _) in downloads.items()})
        self._send_out(cohort, plan, downloads)
        stop = saver and (lambda: saver.stop.number is not None)
        for _ in self.clients.train(cohort, cohort.ids[: plan[0][1]], lambda client_id: downloads[client_id][1], stop):
            pass
        for rank in range(1, self.group.size):
            self._hear_from(rank, cohort, saver)
        weights = [self.server.weight_of(result) if result.finite() else None for result in cohort.done]
        self.group.tell({"weights": weights})
        self._collect(cohort, plan)
        self.group.resting = True
        cohort.seconds = time.perf_counter() - started

    def _plan(self, cohort):
        """Return the (begin, end) of each rank's clients in the Cohort. Raises InputError if they are too many."""
        n_done = len(cohort.done)
        loads = [self.clients.load_of(client_id) for client_id in cohort.ids[n_done:]]
        plan = [(n_done + begin, n_done + end) for begin, end in shares(loads, self.group.size)]
        most = max(end - begin for begin, end in plan[1:])
        if most > self.clients.rows_at_once():
            raise InputError(f"a process has {most} updates of round {cohort.round} to hold: raise --max_cohort_memory")
        return plan

    def _send_out(self, cohort, plan, downloads):
        """Tell all ranks of the round, and send what they need for it."""
        group, kept = self.group, [[], *(self.kept_by(cohort.ids[begin:end]) for begin, end in plan[1:])]
        server_state = self._server_state()
        words = {"server_state": _words_of(server_state), "kept": [_names_of(share) for share in kept]}
        group.tell({"round": cohort.round, "plan": plan, **words})
        group.resting = False
        for _, _, value in server_state:
            if torch.is_tensor(value):
                group.broadcast(value.to(self.server.theta.device).contiguous())
        if not self.own_starts:
            group.broadcast(self.server.downlink.model)
        for rank in range(1, group.size):
            for client_id in cohort.ids[slice(*plan[rank])] if self.own_starts else ():
                group.send(downloads[client_id][1], rank)
            for _, _, tensor in kept[rank]:
                group.send(tensor, rank)

    def _server_state(self):
        """Return [(place among the components, name, value)] of what the server keeps."""
        stateful = enumerate(self.clients.stateful)
        return [(place, name, getattr(keeps, name)) for place, keeps in stateful for name in keeps.server_state]

    def _hear_from(self, rank, cohort, saver):
        """Take what `rank` tells of its clients, and what these keep. Raises Interrupted if it heard a signal."""
        if saver:
            saver.raise_if_stopped()
        told = self.group.report_of(rank)
        if "signal" in told:
            if not saver:
                raise PeerLost(f"rank {rank} heard a signal and stopped")
            saver.stop.number = told["signal"]
            saver.raise_if_stopped()
        cohort.done += [ClientResult.of(result, self.server.theta.device) for result in told["clients"]]
        self.take_kept(told["kept"], rank)

    def _collect(self, cohort, plan):
        """Bring into the Cohort what the merge needs of the other ranks' updates."""
        group, chain = self.group, busy(plan)
        if any(chain) and cohort.rows is None:
            self.sum_up(chain, cohort.sums, ())
        for rank in () if cohort.rows is None else filter(None, chain):
            for i in range(*plan[rank]):
                group.receive(cohort.rows[i], rank)
                if cohort.done[i].masked:
                    mask = self.server.theta.new_empty(self.server.layout.n_trainable, dtype=torch.uint8)
                    cohort.mask_rows(mask)[i] = group.receive(mask, rank).bool()


class Follower(_Sharing):
    """Trains for rank 0, in another process."""

    def __init__(self, server, clients, group, heard):
        """heard: a list to which signals are added as they come."""
        super().__init__(server, clients, group)
        self.heard, self.rows = heard, None

    def train(self, order):
        """Do this rank's part of the round that `order` tells of."""
        round, (begin, end) = order["round"], order["plan"][self.group.rank]
        ids = self.server.participants(round)[0][begin:end]
        self._take_server_state(order["server_state"])
        downloads = self._receive_downloads(ids)
        self.take_kept(order["kept"][self.group.rank], 0)
        cohort = self._cohort(round, ids)
        with only_what_is_kept_changes(self.clients):
            for _ in self.clients.train(cohort, ids, downloads.__getitem__, lambda: bool(self.heard)):
                pass
        if len(cohort.done) < len(ids):
            self.group.report({"signal": self.heard[0]})
            self.group.hear()  # nothing comes: rank 0 ends
        self._report(cohort, ids)
        self._hand_in(cohort, self.group.hear()["weights"][begin:end], order["plan"])

    def _take_server_state(self, told):
        for place, name, value, form in told:
            if form:
                value = empty_of(form, self.server.theta.device)
                self.group.broadcast(value)
            setattr(self.clients.stateful[place], name, value)

    def _receive_downloads(self, ids):
        """Return {client: what it downloads, [broadcast_dim]}."""
        model = self.server.downlink.model
        if self.own_starts:
            return {client_id: self.group.receive(torch.empty_like(model), 0) for client_id in ids}
        self.server.downlink.model = model = torch.empty_like(model)  # it may be the server's own so far
        self.group.broadcast(model)
        return dict.fromkeys(ids, model)

    def _cohort(self, round, ids):
        """Return the Cohort of this rank's clients, whose whole updates stay here until they are merged."""
        if self.rows is None or len(self.rows) < len(ids):
            self.rows = None  # before there is another
            self.rows = self.server.theta.new_empty(len(ids), self.server.algorithm.upload_dim)
        return Cohort(round, ids, [], self.server.new_sums(), self.rows)

    def _report(self, cohort, ids):
        """Tell rank 0 of the clients, and give back what they keep."""
        kept = self.kept_by(ids)
        self.group.report({"clients": [result.plain() for result in cohort.done], "kept": _names_of(kept)})
        for _, _, tensor in kept:
            self.group.send(tensor, 0)
        for client_id in ids:
            self.clients.forget(client_id)

    def _hand_in(self, cohort, weights, plan):
        """Add the updates to the sums that rank 0 gets, or send them."""
        decoded = self.server.algorithm.decoded
        if not self.server.keeps_all:
            updates = [decoded(cohort.rows[i], cohort.mask_of(i)) for i in range(len(cohort.done))]
            self.sum_up(busy(plan), cohort.sums, list(zip(updates, weights, strict=True)))
            return
        for i in range(len(cohort.done)):
            self.group.send(cohort.rows[i], 0)
            if cohort.mask_of(i) is not None:
                self.group.send(cohort.mask_of(i).to(torch.uint8), 0)


def worker_loop(group, prepare):
    """Train for rank 0 until it says that the run is over; return the run's exit status. Raises PeerLost.

    prepare() -> an experiment.Experiment, when rank 0 has something to do.
    """
    heard = []
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: heard.append(number))  # rank 0 saves what there is
    try:
        follower, run, order = None, None, group.hear()
        while "status" not in order:
            if "prepare" in order:
                run = prepare()
                follower = Follower(run.server, run.clients, group, heard)
            elif "begin" in order:
                group.use(run.device)
            else:
                follower.train(order)
            order = group.hear()
    except PeerLost:
        if heard:
            return NOT_FINISHED
        raise
    return order["status"]


def busy(plan):
    """Return the ranks that have clients, in the order of these."""
    return [rank for rank, (begin, end) in enumerate(plan) if end > begin]


def form_of(tensor):
    """Return the shape and the dtype of a tensor as plain values."""
    return list(tensor.shape), str(tensor.dtype).removeprefix("torch.")


def empty_of(form, device):
    """Return a tensor of what `form_of` returned, to be overwritten."""
    shape, dtype = form
    return torch.empty(shape, dtype=getattr(torch, dtype), device=device)


def _names_of(kept):
    """Return [(name, client, form)], which is told before the tensors of `kept_by` are sent."""
    return [(name, client_id, form_of(tensor)) for name, client_id, tensor in kept]


def _words_of(server_state):
    """Return [(place, name, number or None, form of a tensor)], which is told before the tensors are sent."""
    return [
        (place, name, None, form_of(value)) if torch.is_tensor(value) else (place, name, value, None)
        for place, name, value in server_state
    ]
