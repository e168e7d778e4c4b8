"""Where the clients of a round train: in threads of this process.

A backend has `train(cohort, saver)`, which lets all clients of a Cohort that are left train and takes what they send.
"""

import time
from contextlib import contextmanager


class ThreadBackend:
    """Trains in threads of this process."""

    n_processes = 1

    def __init__(self, server, clients):
        self.server, self.clients = server, clients

    def train(self, cohort, saver=None):
        """Let all clients of the Cohort that are left train in this process, and take what they send.

        saver: a CheckpointPolicy. Once saver.due(), no other client begins; when those that have are through,
        saver.after_client() is called, which may end the run.
        """
        started = time.perf_counter() - cohort.seconds

        def start_of(client_id):
            cohort.down[client_id], download = self.server.downlink.download(client_id)
            return download

        with only_what_is_kept_changes(self.clients):
            while len(cohort.done) < len(cohort.ids):
                for _ in self.clients.train(cohort, cohort.ids, start_of, saver and saver.due):
                    cohort.seconds = time.perf_counter() - started
                if saver:
                    saver.after_client()
        cohort.seconds = time.perf_counter() - started


@contextmanager
def only_what_is_kept_changes(clients):
    """Raise InputError if a component keeps something of the body where nobody would find it."""
    before = [keeps.snapshot() for keeps in clients.stateful]
    yield
    for keeps, snapshot in zip(clients.stateful, before, strict=True):
        keeps.check_unchanged(snapshot, "as clients trained")
