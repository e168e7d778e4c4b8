"""The clients of a run: what data each holds, and how some of them train side by side and send."""

from functools import partial

import torch

from fedmerge import wire
from fedmerge.client_update import ClientUpdate
from fedmerge.declared import mistake
from fedmerge.errors import InputError
from fedmerge.randomness import generator
from fedmerge.simulation.client_threads import used_here
from fedmerge.simulation.cohort import ClientResult


class ClientPool:
    """Lets clients of a Server train and send.

    parts: each client's indices into the training data; trainer: the local_training.Trainer; threads: the ClientThreads
    that share it.
    """

    def __init__(self, server, parts, trainer, threads):
        self.server, self.parts, self.trainer, self.threads = server, parts, trainer, threads
        self.spare_rows = []  # [upload_dim] each, for updates; fresh pages cost more than a step
        self.watchers = []  # of what happens: begin(cohort, ids), after_client(cohort)
        self._check_names()

    def _check_names(self):
        """Raise InputError if two components keep something of clients by one name."""
        owners = {}
        for keeps in self.stateful:
            for name in keeps.of_clients():
                if name in owners:
                    raise InputError(f"{type(keeps).__name__} and {owners[name]} both keep `{name}`: another name")
                owners[name] = type(keeps).__name__

    @property
    def stateful(self):
        """All that keeps something between rounds: the server's, and the local method."""
        return *self.server.stateful, self.trainer.local

    def kept(self):
        """Return {name: {client: tensor}}, the dicts themselves: what clients keep."""
        return {name: of for keeps in self.stateful for name, of in keeps.of_clients().items()}

    def forget(self, client_id):
        """Drop what a client keeps."""
        for keeps in self.stateful:
            keeps.forget(client_id)

    def load_of(self, client_id):
        """Return how many samples a client trains on in a round."""
        s, n = self.trainer.settings, len(self.parts[client_id])
        return n * s.epochs if s.max_steps is None else min(n * s.epochs, s.max_steps * s.batch_size)

    def rows_at_once(self):
        """Return how many updates --max_cohort_memory holds."""
        return int(self.server.settings.max_cohort_memory * 2**30) // (4 * self.server.algorithm.upload_dim)

    def train(self, cohort, ids, start_of, pause=None):
        """Let the clients `ids` of the Cohort that are left train, take what they send, and yield after each.

        start_of(client_id) -> what the client downloads, [broadcast_dim]. Once pause(), no other client begins.
        """

        def turns():
            for i, client_id in enumerate(ids[len(cohort.done) :], len(cohort.done)):
                row = self._spare_row() if cohort.rows is None else cohort.rows[i]
                yield partial(self._train_one, client_id, cohort.round, start_of(client_id), row)

        for watcher in self.watchers:
            watcher.begin(cohort, ids)
        for result, update, row in self.threads.run(turns(), self.rows_at_once(), pause):
            used_here(update.mask, *vars(result).values())
            cohort.take(result, update, self.server.weight_of(result))
            if cohort.rows is None:
                self.spare_rows.append(row)
            for watcher in self.watchers:
                watcher.after_client(cohort)
            yield result

    def _spare_row(self):
        if self.spare_rows:
            return self.spare_rows.pop()
        return self.server.theta.new_empty(self.server.algorithm.upload_dim)

    def _train_one(self, client_id, round, download, row, trainer):
        """Let a client train from `download [broadcast_dim]` and send; return its ClientResult, the ClientUpdate that
        arrives, and `row [upload_dim]`, in which that is.

        trainer: the local_training.Trainer that is free for it.
        """
        algorithm, compressor = self.server.stateful
        used_here(download, *(of_client.get(client_id) for of_client in self.kept().values()))
        client = trainer.client(client_id, round)
        download = self.server.crossing.whole(download)
        received, client.received = algorithm.parted(download, algorithm.broadcasts)
        client.row, version = row, download._version
        update = algorithm.train(received, client)
        if download._version != version:
            raise mistake(algorithm, "changed in place what a client received, which others receive, too")
        if not client.n_steps:
            raise mistake(trainer.local, "took no step: a local method's steps are those of self.run")
        update.delta, update.mask = compressor.compress(update.delta, client.start, client)
        update, size = self._send(update, client)
        total = row.sum()  # the cheapest pass that tells whether all of it is finite
        client.is_finite = total.isfinite() & torch.as_tensor(client.loss).isfinite()
        for keeps in self.server.stateful:
            keeps.acknowledge(client, update)
        lent = row, download, client.scratch, trainer.model.vector, trainer.model.gradient
        for keeps in self.stateful:
            keeps.keep_copies(lent, client_id)
        masked = update.mask is not None
        result = ClientResult(
            client_id,
            client.n_samples,
            client.n_steps,
            size,
            client.seen,
            client.loss,
            client.hits,
            total,
            update.mask.sum() if masked else self.server.crossing.n_weights,
            masked,
        )
        return result, update, row

    def _send(self, update, client):
        """Send a ClientUpdate to the server; return the one that it decodes, which is in client.row, and its bytes."""
        s, n, algorithm = self.server.settings, self.server.layout.n_trainable, self.server.algorithm
        crossing, skip = self.server.crossing, self.server.skipped(client.round)
        vector = algorithm.joined(update.delta, update.more)
        real = s.wire == "real" and bool(vector.sum().isfinite())  # no bytes for what is not; faults say whose it is
        rng = generator(s.seed, "rounding", client.round, client.id)
        sent = crossing.update_out(ClientUpdate(vector, update.mask), n)
        message = wire.pack(sent, crossing.n_weights, s.value_bits, rng, client.round, client.id, skip)
        size, message = wire.transmit(message, real)
        return algorithm.decoded(*crossing.unpack(message, client.row, n)), size
