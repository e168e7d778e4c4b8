"""Signals and standard streams at the program's very beginning and end."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from fedmerge import startup

QUICK = ("--n_epochs", "1", "--n_clients", "2", "--participation", "1", "--local_steps", "1", "--quiet")


def python(code, *flags, **how):
    """The finished process of some lines of Python that know startup."""
    command = [sys.executable, "-c", f"import os, signal, sys\nfrom fedmerge import startup\n{code}"]
    return subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True, **how)


def listens_to(process, number):
    """Tell whether the process has a handler for the signal."""
    with open(f"/proc/{process.pid}/status") as file:
        (mask,) = [line.split()[1] for line in file if line.startswith("SigCgt")]
    return int(mask, 16) >> (number - 1) & 1


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGINT", "SIGTERM"])
def test_a_signal_ends_a_program_that_is_just_starting(tmp_path, name):
    command = [sys.executable, ROOT / "fedalg.py", *QUICK, "--out", tmp_path]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not listens_to(process, signal.SIGUSR1):
        assert process.poll() is None
    process.send_signal(getattr(signal, name))
    assert process.communicate() == ("", f"fedalg.py: stopped by {name} before any work\n")
    assert process.returncode == startup.NOT_FINISHED
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_while_the_interpreter_ends_changes_no_status(name):
    """`last` goes when Python has taken all handlers away."""
    code = (
        f"class Last:\n def __del__(self): os.kill(os.getpid(), signal.{name})\nlast = Last()\nstartup.end_at_signals()"
    )
    assert python(f"{code}\nsys.exit(75)").returncode != 75
    done = python(f"{code}\nstartup.leave(75)")
    assert (done.returncode, done.stderr) == (75, "")


def test_a_signal_after_a_run_is_for_nobody():
    handler = signal.getsignal(signal.SIGUSR1)
    assert startup.afterwards(handler) is handler
    try:
        startup.end_at_signals()
        assert startup.afterwards(signal.getsignal(signal.SIGUSR1)) is signal.SIG_IGN
        with startup.killed_by_signals():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert startup.afterwards(signal.getsignal(signal.SIGTERM)) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_streams_that_are_closed_stay_out_of_the_way(tmp_path):
    """Where nothing has the number of standard error, the next file to be opened would be printed into."""
    code = "startup.mend_streams(); file = open('made', 'w'); print('x', file=sys.stderr); os.write(2, b'y')"
    command = [sys.executable, "-c", f"import os, sys\nfrom fedmerge import startup\n{code}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-c", '"$@" 0<&- 1>&- 2>&-', "sh", *command], cwd=tmp_path, env=environment)
    assert done.returncode == 0
    assert (tmp_path / "made").read_text() == ""


def test_what_cannot_be_printed_ends_nothing_in_a_traceback():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict", "PYTHONUNBUFFERED": ""}
    done = python(r"startup.mend_streams(); print('\udcff é'); startup.leave(0)", env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\udcff \\xe9\n", "")
    full = "os.dup2(os.open('/dev/full', os.O_WRONLY), 1)"
    done = python(f"startup.mend_streams(); {full}; print('x'); startup.leave(75)", env=environment)
    assert (done.returncode, done.stderr) == (75, "")


@pytest.mark.slow
def test_a_run_without_standard_error_in_a_folder_of_no_characters(tmp_path):
    odd = os.fsencode(tmp_path) + b"/\xff\xfe"
    command = [sys.executable, ROOT / "fedalg.py", *QUICK, "--no-quiet", "--out", odd]
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(["sh", "-c", '"$@" 2>&-', "sh", *command], env=strict, capture_output=True, text=True)
    assert done.returncode == 0
    assert r"/\udcff\udcfe/metrics/" in done.stdout
