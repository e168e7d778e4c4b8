"""When a run is saved: now and then, and when a signal asks it to end."""

import contextlib
import math
import os
import signal
import sys
import threading
import time

from fedmerge.startup import SIGNALS, afterwards

LONGEST = 600  # seconds without a checkpoint, as far as clients end in them
SHARE = 0.007  # of the time, for checkpoints; they grow with what clients keep, and shall not pass 0.01


class Interrupted(Exception):
    """A signal asked the run to end, and it is saved."""


class StopSignal:
    """The signal, if any, that asked the run to end: `number`."""

    def __init__(self):
        self.number = None
        self.since = 0.0  # when it came
        self.ending = False  # whether all is saved that will be
        self.longest = 0.0  # seconds that a client took

    def raise_if_set(self, place):
        """Raise Interrupted if a signal came. place: how far the run is, in words."""
        if self.number is not None:
            self.ending = True
            raise Interrupted(f"stopped by {signal.Signals(self.number).name} after {place}; the same command goes on")

    def begin(self, cohort, ids):
        """See a round begin, or go on."""
        self.first, self.clock = len(cohort.done), time.monotonic()

    def after_client(self, cohort):
        """See a client end: the first of them has the most samples of those that were left."""
        if len(cohort.done) == self.first + 1:
            self.longest = max(self.longest, time.monotonic() - self.clock)

    @contextlib.contextmanager
    def listening(self):
        """Until the body is through, take the first SIGTERM, SIGUSR1 or SIGINT as a wish; a second one ends at once.

        A SIGTERM within a second of another is taken for the same one.
        """
        if threading.current_thread() is not threading.main_thread():  # Python hears signals in that one only
            yield
            return
        before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, afterwards(handler))

    def _hear(self, number, frame):
        if self.ending or (number == self.number == signal.SIGTERM and time.monotonic() - self.since < 1):
            return  # the same one once more: a job's shell and the scheduler both pass it on
        if self.number is not None:
            os._exit(128 + number)
        self.number, self.since = number, time.monotonic()
        most = f", up to about {math.ceil(self.longest)} s" if self.longest else " (none has ended yet)"
        name = signal.Signals(number).name
        _say_at_once(f"{name}: ends and saves after the client at hand{most}; again ends at once")


def _say_at_once(line):
    """Print on standard error, though a signal may have come while something else was printed there."""
    line = "\n" * sys.stderr.isatty() + line  # a bar may be there
    try:
        print(line, file=sys.stderr, flush=True)
    except RuntimeError:  # it did, and Python does not begin twice
        os.write(2, f"{line}\n".encode())


class CheckpointPolicy:
    """Saves a run when it is time to.

    run: what is saved, once it is known: `run.state_dict()`, `run.place()` in words, `run.n_done` of `run.n_rounds`.
    """

    def __init__(self, checkpoints, every=None):
        """every: rounds between checkpoints; if None, they follow so that they take less than 1 % of the time."""
        self.checkpoints, self.every, self.stop, self.run = checkpoints, every, StopSignal(), None
        self.begun = self.last = time.monotonic()
        self.cost, self.spent = 0.1, 0.0  # seconds: of the last one, at first a guess, and of all

    def due(self):
        """Tell whether a signal came, or the last checkpoint is ten minutes old."""
        return self.stop.number is not None or time.monotonic() - self.last > LONGEST

    def after_client(self):
        """Save if it is `due`; raise Interrupted, when saved, if a signal came."""
        stopped = self.stop.number is not None  # asked once: one that comes from here on is of the next client
        if stopped or self.due():
            self.save()
        if stopped:
            self.raise_if_stopped()

    def raise_if_stopped(self):
        """Raise Interrupted if a signal came."""
        self.stop.raise_if_set(self.run.place() if self.run else "nothing")

    def after_round(self):
        """Save if it is time; raise Interrupted, when saved, if a signal came."""
        self.after_client()
        if self.every is None:
            due = self.spent + self.cost < SHARE * (time.monotonic() - self.begun)
        else:
            due = self.run.n_done % self.every == 0
        if due and self.run.n_done < self.run.n_rounds:
            self.save()

    def save(self):
        """Write a checkpoint."""
        started = time.monotonic()
        self.checkpoints.save(self.run.state_dict())
        self.last = time.monotonic()
        self.cost = self.last - started
        self.spent += self.cost
