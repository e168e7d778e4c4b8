"""When a run is saved: now and then, and when a signal asks it to end."""

import contextlib
import math
import os
import signal
import sys
import time

from fedmerge.simulation.run_state import state_of
from fedmerge.startup import SIGNALS, afterwards

LONGEST = 600  # seconds without a checkpoint, as far as clients end in them
SHARE = 0.007  # of the time, for checkpoints; they grow with what clients keep, and shall not pass 0.01


class Interrupted(Exception):
    """A signal asked the run to end, and it is saved."""


class Keeper:
    """Saves a run now and then, and when a signal asks it to end."""

    def __init__(self, checkpoints, every=None):
        """every: rounds between checkpoints; if None, they follow so that they take less than 1 % of the time."""
        self.checkpoints, self.every, self.asked = checkpoints, every, None
        self.begun = self.last = time.monotonic()
        self.cost, self.spent = 0.1, 0.0  # seconds: of the last one, at first a guess, and of all
        self.longest = 0.0  # seconds that a client took
        self.ending = False  # whether all is saved that will be

    def due(self):
        """Tell whether a signal came, or the last checkpoint is ten minutes old."""
        return self.asked is not None or time.monotonic() - self.last > LONGEST

    def after_client(self, exp):
        """Save if it is `due`; raise Interrupted, when saved, if a signal came."""
        if self.due():
            self.save(exp)
        self.heed(exp)

    def heed(self, exp):
        """Raise Interrupted if a signal came."""
        if self.asked is not None:
            self.ending = True
            place = f"round {len(exp.rows) + 1}, {exp.cohort.progress()}" if exp.cohort else f"round {len(exp.rows)}"
            raise Interrupted(f"stopped by {signal.Signals(self.asked).name} after {place}; the same command goes on")

    def after_round(self, exp):
        """Save if it is time; raise Interrupted, when saved, if a signal came."""
        self.after_client(exp)
        if self.every is None:
            due = self.spent + self.cost < SHARE * (time.monotonic() - self.begun)
        else:
            due = len(exp.rows) % self.every == 0
        if due and len(exp.rows) < exp.args.n_epochs:
            self.save(exp)

    def save(self, exp):
        """Write a checkpoint."""
        started = time.monotonic()
        self.checkpoints.save(state_of(exp))
        self.last = time.monotonic()
        self.cost = self.last - started
        self.spent += self.cost

    @contextlib.contextmanager
    def listening(self):
        """Until the body is through, take the first SIGTERM, SIGUSR1 or SIGINT as a wish; a second one ends at once.

        A SIGTERM within a second of another is taken for the same one.
        """

        def hear(number, frame):
            if self.ending or (number == self.asked == signal.SIGTERM and time.monotonic() - since[0] < 1):
                return  # the same one once more: a job's shell and the scheduler both pass it on
            if self.asked is not None:
                os._exit(128 + number)
            self.asked, since[0] = number, time.monotonic()
            most = f", up to about {math.ceil(self.longest)} s" if self.longest else " (none has ended yet)"
            name = signal.Signals(number).name
            _say_at_once(f"{name}: ends and saves after the client at hand{most}; again ends at once")

        since = [0.0]
        before = {number: signal.signal(number, hear) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, afterwards(handler))


def _say_at_once(line):
    """Print on standard error, though a signal may have come while something else was printed there."""
    line = "\n" * sys.stderr.isatty() + line  # a bar may be there
    try:
        print(line, file=sys.stderr, flush=True)
    except RuntimeError:  # it did, and Python does not begin twice
        os.write(2, f"{line}\n".encode())
