"""One run over several processes: the same results with any number of them, and clean ends when one is lost."""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from conftest import QUICK, ROOT
from hypothesis import given
from hypothesis import strategies as st
from processes import FEW, TIMES, flags, n_rows, outcome

import fedalg
from fedmerge.checkpoint.policy import Interrupted, Keeper
from fedmerge.checkpoint.store import Checkpoints
from fedmerge.config.parser import parse_args
from fedmerge.config.resolve import resolve
from fedmerge.registry import ALGORITHMS, LOCAL_METHODS
from fedmerge.simulation import distributed, evaluation, rounds
from fedmerge.simulation.process_group import Ranks
from fedmerge.simulation.run_state import resume

SMALL = {**QUICK, "device": "cpu", "local_steps": 2, "participation": 0.3, "dirichlet": 0.5, "min_client_samples": 2}
CASES = [
    *({"algorithm": name, "norm": "batch"} for name in sorted(set(ALGORITHMS) - {"centralised"})),
    *({"local": name} for name in sorted(LOCAL_METHODS)),
    {"algorithm": "las", "preset": "compact", "server_momentum": 0.5, "residual_momentum": 0.5, "wire": "real"},
    {"algorithm": "las", "residual": "client", "participation": 0.1},  # two clients, fewer than ranks
    {"downlink": "individual", "down_sparsity": 0.1, "shared_init": False, "value_bits": 8},
    {"algorithm": "krum", "attack": "noise", "attackers": 0.3, "dropout": 0.3},
    {"lr": 1e30, "on_nan": "skip", "algorithm": "las", "residual": "client"},
    {"attack": "sign_flip", "attackers": 0.4, "attack_strength": 3e38, "on_nan": "skip", "local_steps": 6},
    {"parallel_clients": 2, "algorithm": "las"},
]


def settings_of(case):
    """All settings of a case."""
    pools = {"n_verts": 2, "soup_epochs": 1}
    has_pool = {"lss", "soups", "diwa"} & {case.get("algorithm"), case.get("local")}
    return {**SMALL, **case, **(pools if has_pool else {})}


def train(case, group=None):
    """Train two rounds; return what can be known of the run as plain values."""
    exp = fedalg.prepare(resolve(settings_of(case)), group)
    for round in (1, 2):
        exp.rows.append(rounds.train_round(exp, round))
    held = {**exp.algorithm.held(), **exp.trainer.local.held()}
    return {
        "rows": [{k: v for k, v in row.items() if k not in TIMES} for row in exp.rows],
        "traffic": {str(number): counts for number, counts in exp.traffic.items()},
        "theta": digest(exp.theta),
        "served": digest(evaluation.served(exp)),
        "downlink": digest(exp.downlink.model),
        "held": {kind: {str(n): digest(t) for n, t in sorted(of.items())} for kind, of in held.items()},
    }


def digest(tensor):
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def all_cases(path):
    """What one process of a group does: train all cases, and, if it is the first, write what they came to."""
    torch.set_num_threads(1)
    group, found = Ranks.join(), []
    for case in CASES:
        if group.rank:
            distributed.serve(group, partial(fedalg.prepare, resolve(settings_of(case)), group))
        else:
            found.append(train(case, group))
            group.tell({"status": 0})
    if group.rank == 0:
        path.write_text(json.dumps(found))
    group.leave()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environments(n):
    """The variables of each of n processes, as torchrun sets them."""
    common = {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [{**common, "RANK": str(i), "LOCAL_RANK": str(i)} for i in range(n)]


@pytest.fixture(scope="module")
def alone():
    """What the cases come to in one process, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield [json.loads(json.dumps(train(case))) for case in CASES]
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=[2, 3])
def together(request, tmp_path_factory, spawn):
    """What they come to in so many."""
    path = tmp_path_factory.mktemp("ranks") / "found.json"
    group = [spawn(path, function=all_cases, environment=e) for e in environments(request.param)]
    for process in group:
        process.join(300)
    assert [process.exitcode for process in group] == [0] * request.param
    return json.loads(path.read_text())


@pytest.mark.parametrize("i", range(len(CASES)), ids=lambda i: str(CASES[i]))
def test_any_number_of_processes_makes_the_same_to_the_last_bit(alone, together, i):
    for what, expected in alone[i].items():
        assert repr(together[i][what]) == repr(expected), what  # as text, in which nan is nan


def test_what_diverges_is_really_among_the_cases(alone):
    assert any(row["clients"] == 0 for found in alone for row in found["rows"])
    assert any(0 < row["clients"] < 6 for row in alone[-2]["rows"])  # of six, some


@given(loads=st.lists(st.integers(1, 50), max_size=8), n=st.integers(1, 5))
def test_shares_are_consecutive_and_none_is_larger_than_it_must_be(loads, n):
    plan = distributed.shares(loads, n)
    assert len(plan) == n
    assert [i for begin, end in plan for i in range(begin, end)] == list(range(len(loads)))

    def least(i, parts):
        """The largest sum at best, of loads[i:] in so many parts."""
        if parts == 1:
            return sum(loads[i:])
        return min(max(sum(loads[i:j]), least(j, parts - 1)) for j in range(i, len(loads) + 1))

    assert max(sum(loads[begin:end]) for begin, end in plan) == least(0, n)


# --------------------------------------------------------------------------------------------------------------------
# The program


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


LONG = {**FEW, "algorithm": "las", "preset": "compact", "n_epochs": 40, "checkpoint_every": 5, "dirichlet": 0.5}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, spawn):
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


@pytest.mark.parametrize("heard_by", [(0, 1), (0,), (1,)])
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


@pytest.mark.parametrize("n_done", [1, 2])
def test_a_round_that_one_process_began_is_ended_by_several(tmp_path, spawn, undisturbed, n_done):
    settings = {**LONG, "save_weights": tmp_path / "w.pt"}
    args = parse_args(flags(settings, tmp_path))
    for _ in range(n_done):
        exp = fedalg.prepare(args)
        keeper = Keeper(Checkpoints(args.checkpoint_dir, exp.name))
        resume(exp, keeper.checkpoints)
        keeper.asked = signal.SIGTERM
        with pytest.raises(Interrupted):
            rounds.train_round(exp, 1, keeper)
    assert len(exp.cohort.done) == n_done
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
    words = flags({**FEW, "n_epochs": 2}, tmp_path)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    done = subprocess.run([*command, str(ROOT / "fedalg.py"), *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": test accuracy") == 1  # one of them speaks
    alone = tmp_path / "alone"
    join([spawn(flags({**FEW, "n_epochs": 2}, alone))])
    assert outcome(tmp_path) == outcome(alone)
