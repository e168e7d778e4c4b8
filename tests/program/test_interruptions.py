"""Runs that are killed, asked to end, or left without room go on, and end as if nothing had been."""

import csv
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import QUICK, ROOT, keep_two_rounds
from processes import FEW, flags, n_rows, outcome

from fedmerge.reporting import run_status
from fedmerge.startup import NOT_FINISHED

SETTINGS = [
    # One of each kind of state; that any component's is whole, tests/contracts tell.
    *({"algorithm": name} for name in ("fedacg", "median", "moon", "scaffold")),
    {"algorithm": "fedavg", "local": "lss", "later_share": 0.5},
    {"algorithm": "las", "preset": "compact", "server_momentum": 0.5, "residual_momentum": 0.5, "wire": "real"},
    {
        "algorithm": "las",
        "residual": "server",
        "downlink": "individual",
        "norm": "batch",
        "bn_every": 2,
        "eval_every": 2,
    },
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_a_run_killed_at_any_moment_ends_as_one_that_was_not(tmp_path, spawn, small_networks, settings):
    pools, n_rounds = {"n_verts": 2, "soup_epochs": 1}, 12
    settings = {**FEW, "n_epochs": n_rounds, "model_name": "small", **settings, "checkpoint_every": 1}
    if settings.get("local") == "lss":
        settings = {**settings, **pools}
        del settings["n_client_epochs"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    started = time.monotonic()
    process = spawn(flags({**settings, "save_weights": whole / "w.pt"}, whole))
    process.join()
    seconds, kills = time.monotonic() - started, 0
    assert process.exitcode == 0
    moments = random.Random(str(settings))
    for rows in (moments.randint(2, n_rounds // 2), None):  # after the first checkpoint, then anywhere
        process = spawn(flags({**settings, "save_weights": killed / "w.pt"}, killed))
        while rows and process.is_alive() and n_rows(killed) < rows:
            time.sleep(0.002)
        process.join(moments.uniform(0, 0.1 if rows else 0.9) * seconds)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills > 0
    process = spawn(flags({**settings, "save_weights": killed / "w.pt"}, killed))
    process.join()
    assert process.exitcode == 0
    assert outcome(killed) == outcome(whole)
    assert not list((killed / "c").glob("*.pt"))


LONG = ("--n_epochs", "400", "--n_clients", "4", "--participation", "1", "--n_client_epochs", "1", "--lr", "0.05")


@pytest.fixture
def started(tmp_path):
    """A function of flags -> a process of fedalg.py, as a user starts it, that has trained a round."""
    processes = []

    def start(*more):
        files = {"metrics_dir": "m", "plots_dir": "p", "checkpoint_dir": "c", "results_file": "r.csv"}
        where = [w for name, file in files.items() for w in (f"--{name}", str(tmp_path / file))]
        command = [sys.executable, str(ROOT / "fedalg.py"), *where, *more]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        processes.append(process)
        assert process.stdout.readline().startswith("round "), process.stderr.read()
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_a_signal_ends_a_run_that_can_go_on(tmp_path, started):
    process = started(*LONG)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == NOT_FINISHED
    assert "stopped by SIGTERM after round" in said
    assert said.count("\n") == 3  # what the split is, that it heard, and that it ended
    rounds = n_rows(tmp_path)
    process = started(*LONG)
    assert n_rows(tmp_path) >= rounds >= 1
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert re.search(r"goes on after round [1-9]\d* of 400", said)


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGINT"])
def test_another_signal_keeps_as_much(tmp_path, spawn, name):
    said = tmp_path / "said"
    process = spawn(flags({**FEW, "n_epochs": 400}, tmp_path), said)
    while not n_rows(tmp_path):
        assert process.is_alive()
    os.kill(process.pid, getattr(signal, name))
    process.join(60)
    assert process.exitcode == NOT_FINISHED
    assert f"stopped by {name} after round" in said.read_text()
    assert list((tmp_path / "c").glob("*.pt"))


def test_signals_to_a_run_that_is_finished_are_no_failure(started):
    process = started("--n_epochs", "1", "--n_clients", "2", "--participation", "1", "--n_client_epochs", "1")
    assert "test accuracy" in process.stdout.readline()
    for number in itertools.cycle([signal.SIGUSR1, signal.SIGTERM, signal.SIGINT]):  # as the interpreter ends
        if process.poll() is not None:
            break
        process.send_signal(number)
        time.sleep(0.005)
    assert process.returncode == 0


@pytest.mark.parametrize(("name", "wait"), [("SIGTERM", 1.1), ("SIGINT", 0)])
def test_a_second_signal_ends_a_run_at_once(tmp_path, spawn, name, wait):
    said = tmp_path / "said"
    process = spawn(flags({"n_clients": 1, "participation": 1, "n_client_epochs": 1000}, tmp_path), said)
    while not list((tmp_path / "m").glob("*.csv")):
        assert process.is_alive()
    os.kill(process.pid, getattr(signal, name))
    while "ends and saves after the client at hand (none has ended yet); again ends at once\n" not in said.read_text():
        assert process.is_alive()
    time.sleep(wait)  # a SIGTERM at once is taken for the first one
    os.kill(process.pid, getattr(signal, name))
    process.join(30)
    assert process.exitcode == 128 + getattr(signal, name)


def test_two_checkpoints_are_kept_and_none_of_a_finished_run(tmp_path, program):
    kept, _ = keep_two_rounds(tmp_path)
    assert sorted(os.listdir(tmp_path / "checkpoint")) == sorted([kept.newest.name, kept.previous.name])
    leftover = kept.newest.with_name(f".{kept.newest.name}.1.tmp")
    leftover.write_bytes(b"of a killed process")
    words = [w for k, v in QUICK.items() for w in (f"--{k}", v)]
    done = program(*words, "--checkpoint_dir", tmp_path / "checkpoint")
    assert "goes on after round 2 of 2" in done.stderr
    assert not list((tmp_path / "checkpoint").glob("*.pt"))
    assert not leftover.exists()


def test_fresh_starts_over(tmp_path, program):
    keep_two_rounds(tmp_path)
    words = [w for k, v in QUICK.items() for w in (f"--{k}", v)]
    done = program(*words, "--checkpoint_dir", tmp_path / "checkpoint", "--fresh")
    assert "goes on" not in done.stderr
    assert "round 1/2" in done.stdout
    assert not list((tmp_path / "checkpoint").glob("*.pt"))


@pytest.fixture
def small_disk(tmp_path):
    """A function of bytes, options -> the folder of a file system of its own, so large."""
    folder = tmp_path / "small"
    folder.mkdir()

    def mount(size, options="rw"):
        words = ["mount", "-t", "tmpfs", "-o", f"size={size},{options}", "tmpfs", str(folder)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"only who may mount a file system can fill one: {done.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True)


SHORT = {**FEW, "n_epochs": 40, "n_clients": 2, "participation": 0.5, "local_steps": 1, "checkpoint_every": 1}


def ends_as_usual(spawn, settings, folder, whole):
    """Run again what was stopped in `folder`, now that nothing is in its way; compare with a run in `whole`."""
    for where in (folder, whole):
        process = spawn(flags(settings, where))
        process.join()
        assert process.exitcode == 0
    assert outcome(folder) == outcome(whole)


def complete_rows(folder):
    """How many rows the CSV has; all of them are whole."""
    (table,) = (folder / "m").glob("*.csv")
    text = table.read_text()
    assert text.endswith("\n")
    rows = list(csv.DictReader(text.splitlines()))
    assert [int(row["epoch"]) for row in rows] == list(range(1, len(rows) + 1))
    assert all(row["clients"] == "1" for row in rows)
    return len(rows)


def one_line(said):
    """The only line on standard error besides that the run goes on."""
    lines = said.read_text().splitlines()
    (line,) = [line for line in lines if "goes on after" not in line and not line.startswith("split ")]
    return line


def test_a_checkpoint_that_does_not_fit_on_the_disk_spoils_none(tmp_path, spawn, small_disk):
    disk, said = small_disk("6m"), tmp_path / "said"
    words = [*flags(SHORT, tmp_path), "--checkpoint_dir", str(disk / "c")]
    process = spawn(words, said)
    process.join()
    assert process.exitcode == 1
    assert "No space left on device" in one_line(said)
    assert complete_rows(tmp_path) == 3  # the third checkpoint beside the two before it is too much
    assert [file.suffix for file in (disk / "c").iterdir() if file.suffix != ".lock"] == [".pt", ".pt"]
    shutil.copytree(disk / "c", tmp_path / "c")
    ends_as_usual(spawn, SHORT, tmp_path, tmp_path / "whole")


def test_rows_that_do_not_fit_on_the_disk_are_not_there(tmp_path, spawn, small_disk):
    disk, said = small_disk("64k"), tmp_path / "said"
    (disk / "filler").write_bytes(bytes(52 * 1024))  # leaves three pages, of which the record takes two
    (tmp_path / "m").symlink_to(disk / "m")
    (disk / "m").mkdir()
    process = spawn(flags(SHORT, tmp_path), said)
    process.join()
    assert process.exitcode == 1
    assert "No space left on device" in one_line(said)
    assert 1 < complete_rows(tmp_path) < 40
    (disk / "filler").unlink()
    ends_as_usual(spawn, SHORT, tmp_path, tmp_path / "whole")


def test_a_limit_on_the_size_of_files_stops_a_run_with_a_line(tmp_path, spawn):
    said = tmp_path / "said"
    process = spawn(flags(SHORT, tmp_path), said, 2**20)
    process.join()
    assert process.exitcode == 1
    assert "File too large" in one_line(said)
    assert complete_rows(tmp_path) == 1
    assert not [file for file in (tmp_path / "c").iterdir() if file.suffix != ".lock"]


def test_a_read_only_disk_is_refused_before_any_work(tmp_path, small_disk, program):
    disk = small_disk("64k", "ro")
    done = program("--metrics_dir", disk / "m")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(f"--metrics_dir: the folder {disk} cannot be written")


def test_a_run_whose_folder_is_deleted_says_so_and_can_go_on(tmp_path, spawn):
    said = tmp_path / "said"
    process = spawn(flags(SHORT, tmp_path), said)
    while n_rows(tmp_path) < 3:
        assert process.is_alive()
    shutil.rmtree(tmp_path / "m")
    process.join()
    assert process.exitcode == 1
    assert "was removed while the run wrote to it" in one_line(said)
    ends_as_usual(spawn, SHORT, tmp_path, tmp_path / "whole")


def test_a_run_killed_while_it_saves_weights_or_clients_still_leaves_them(tmp_path, spawn):
    """No checkpoint has been written in the rounds: the last one is, before anything else is left."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = {**FEW, "norm": "batch", "save_clients": "clients", "save_weights": "w.pt", "dirichlet": 0.5}
    words = {
        folder: flags(settings | {k: folder / settings[k] for k in ("save_clients", "save_weights")}, folder)
        for folder in (whole, killed)
    }
    process = spawn(words[whole])
    process.join()
    assert process.exitcode == 0
    for sign in ("w.pt", "clients/client_0001.payload", "clients/clients.json"):
        process = spawn(words[killed])
        while not (killed / sign).exists():
            assert process.is_alive()
        process.kill()
        process.join()
        if process.exitcode == 0:
            break  # too late for the last one
        assert run_status.state_of(words[killed])[0].startswith("stopped after round 5 of 5")
    process = spawn(words[killed])
    process.join()
    assert process.exitcode == 0
    assert outcome(killed) == outcome(whole)
    for path in sorted((whole / "clients").glob("*.payload")):
        assert path.read_bytes() == (killed / "clients" / path.name).read_bytes()


def test_going_on_writes_over_nothing_that_is_not_its_own(tmp_path, program):
    keep_two_rounds(tmp_path)
    (tmp_path / "precious.pt").write_bytes(b"of somebody")
    words = [w for k, v in QUICK.items() for w in (f"--{k}", v)]
    done = program(*words, "--checkpoint_dir", tmp_path / "checkpoint", "--save_weights", tmp_path / "precious.pt")
    assert done.returncode == 2
    assert "precious.pt: is there already" in done.stderr
    assert (tmp_path / "precious.pt").read_bytes() == b"of somebody"


def test_fresh_holds_once_not_whenever_a_job_is_requeued(tmp_path, program, monkeypatch):
    keep_two_rounds(tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    words = [w for k, v in QUICK.items() for w in (f"--{k}", v)]
    done = program(*words, "--checkpoint_dir", tmp_path / "checkpoint", "--fresh")
    assert "goes on after round 2 of 2" in done.stderr
