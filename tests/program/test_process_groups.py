"""The program in several processes: clean ends when one is lost or asked to end, and what goes on afterwards."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, train_round
from processes import FEW, environments, flags, free_port, n_rows, outcome

from fedmerge.checkpoint.policy import CheckpointPolicy, Interrupted
from fedmerge.checkpoint.store import Checkpoints
from fedmerge.config.parser import parse_args
from fedmerge.simulation.experiment import prepare
from fedmerge.simulation.run_state import RunState


def start(spawn, settings, folder, n):
    """Start the program in n processes; return these, and the files that hold what they say."""
    folder.mkdir(exist_ok=True)
    said = [folder / f"said_{i}" for i in range(n)]
    words = flags(settings, folder)
    return [spawn(words, said[i], environment=e) for i, e in enumerate(environments(n))], said


def join(group, seconds=60):
    for process in group:
        process.join(seconds)
    return [process.exitcode for process in group]


LONG = {
    **{**FEW, "algorithm": "las", "preset": "compact", "model_name": "small", "dirichlet": 0.5},
    **{"n_epochs": 80, "checkpoint_every": 5},
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, spawn, small_networks):
    """What a run of one process leaves."""
    folder = tmp_path_factory.mktemp("whole")
    process = spawn(flags({**LONG, "save_weights": folder / "w.pt"}, folder))
    process.join()
    assert process.exitcode == 0
    return outcome(folder)


def wait_for_rows(folder, n):
    deadline = time.monotonic() + 60
    while n_rows(folder) < n:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("who", [0, 1])
def test_a_rank_that_dies_ends_the_run_which_then_goes_on_with_any_number(tmp_path, spawn, undisturbed, who):
    settings = {**LONG, "save_weights": tmp_path / "w.pt"}
    group, said = start(spawn, settings, tmp_path, 3)
    wait_for_rows(tmp_path, 8)
    group[who].kill()
    codes = join(group)
    assert [codes[i] for i in range(3) if i != who] == [1, 1]
    lines = [said[i].read_text().splitlines()[-1] for i in range(3) if i != who]
    if who:
        assert lines[0].startswith("fedalg.py: stopped: another process of this run ended, or cannot be reached (")
        assert lines[0].endswith("the same command goes on")
    else:
        assert all("stopped: another process of this run ended" in line for line in lines)
    group, said = start(spawn, settings, tmp_path, 2)
    assert join(group) == [0, 0]
    assert "goes on after round" in said[0].read_text()
    assert outcome(tmp_path) == undisturbed


@pytest.mark.parametrize("heard_by", [(0, 1), (1,)])
def test_a_signal_to_any_of_them_saves_the_run(tmp_path, spawn, undisturbed, heard_by):
    settings = {**LONG, "save_weights": tmp_path / "w.pt"}
    group, said = start(spawn, settings, tmp_path, 2)
    wait_for_rows(tmp_path, 3)
    for i in heard_by:
        os.kill(group[i].pid, signal.SIGTERM)
    codes = join(group)
    assert codes[0] == 75
    assert codes[1] == (75 if 1 in heard_by else 1)
    assert "stopped by SIGTERM after round" in said[0].read_text()
    process = spawn(flags(settings, tmp_path))  # alone
    process.join()
    assert process.exitcode == 0
    assert outcome(tmp_path) == undisturbed


def test_a_share_that_does_not_fit_ends_the_run_in_one_line(tmp_path, spawn):
    """Of six equal clients, each of two processes has three, of 188,810 weights."""
    settings = {**FEW, "participation": 1.0, "n_epochs": 1}
    size = 4 * 188_810 / 2**30
    group, _ = start(spawn, {**settings, "max_cohort_memory": 3.1 * size}, tmp_path / "fits", 2)
    assert join(group) == [0, 0]
    group, said = start(spawn, {**settings, "max_cohort_memory": 2.9 * size}, tmp_path / "not", 2)
    assert join(group) == [2, 2]
    assert said[0].read_text().startswith("fedalg.py: error: each of 2 processes needs 3 updates of a round at once")
    uneven = {**settings, "max_cohort_memory": 3.1 * size, "dirichlet": 0.1, "n_clients": 6}
    group, said = start(spawn, uneven, tmp_path / "uneven", 2)
    assert join(group) == [2, 2]
    assert re.search(r"error: a process has \d updates of round 1 to hold", said[0].read_text())


def test_a_round_that_one_process_began_is_ended_by_several(tmp_path, spawn, undisturbed):
    settings = {**LONG, "save_weights": tmp_path / "w.pt"}
    args = parse_args(flags(settings, tmp_path))
    run = prepare(args)
    saver = CheckpointPolicy(Checkpoints(args.checkpoint_dir, run.name))
    saver.run = RunState(run)
    saver.stop.number = signal.SIGTERM
    with pytest.raises(Interrupted):
        train_round(run, 1, saver)
    assert len(run.server.cohort.done) == 1
    group, said = start(spawn, settings, tmp_path, 2)
    assert join(group) == [0, 0]
    assert "goes on after round 0" in said[0].read_text()
    assert outcome(tmp_path) == undisturbed


def test_a_finished_run_and_a_bad_one_end_all_processes_at_once(tmp_path, spawn):
    settings = {**FEW, "n_epochs": 1}
    group, _ = start(spawn, settings, tmp_path, 2)
    assert join(group) == [0, 0]
    again, _ = start(spawn, settings, tmp_path, 2)
    assert join(again) == [0, 0]
    bad, said = start(spawn, {**FEW, "dataset": "CIFAR10", "data_root": tmp_path}, tmp_path / "bad", 2)
    assert join(bad)[0] == 2
    assert said[0].read_text().startswith("fedalg.py: error: ")
    diverging, said = start(spawn, {**FEW, "lr": 1e30}, tmp_path / "diverging", 2)
    assert join(diverging) == [1, 1]
    assert "is not finite" in said[0].read_text()
    assert said[1].read_text() == ""


def test_torchrun_starts_it(tmp_path, spawn):
    settings = {**FEW, "n_epochs": 2, "local": "swa"}  # which is the beginning of several flags of torchrun's
    words = flags(settings, tmp_path)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    command += ["--", str(ROOT / "fedalg.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": test accuracy") == 1  # one of them speaks
    alone = tmp_path / "alone"
    join([spawn(flags(settings, alone))])
    assert outcome(tmp_path) == outcome(alone)
