"""What fedalg.py does before anything else: standard streams that cannot fail, and signals that lose nothing.

Imports nothing that takes time.
"""

import contextlib
import os
import signal
import sys

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
NOT_FINISHED = 75  # exit status of a run that a signal ended: the same command goes on (EX_TEMPFAIL of sysexits.h)


def mend_streams():
    """Open standard streams that are closed as the null device, print characters that a stream cannot take as \\x."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: another file would be printed into
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        getattr(sys, name).reconfigure(errors="backslashreplace")


def end_at_signals():
    """Until a run listens to them itself, let SIGNALS end the program at once, with NOT_FINISHED."""
    for number in SIGNALS:
        signal.signal(number, _end)


def _end(number, frame):
    with contextlib.suppress(OSError):
        os.write(2, f"fedalg.py: stopped by {signal.Signals(number).name} before any work\n".encode())
    os._exit(NOT_FINISHED)


def afterwards(handler):
    """Return what follows on `handler` of a signal when a run no longer listens: nothing, if it is this program's."""
    return signal.SIG_IGN if handler is _end else handler


@contextlib.contextmanager
def killed_by_signals():
    """Where SIGNALS would end the program, let them kill it during the body, where Python could not hear them."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ours = [number for number, handler in before.items() if handler is _end]
    for number in ours:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, _end)


def leave(status):
    """End the program with `status`, whatever becomes of what is still to be printed, and whatever signal comes."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # a handler would be gone before the interpreter is
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # the reader is gone, the disk is full; and Python would try again
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(status)
