"""Runs that are killed, asked to end or left with damaged files go on, and end as if nothing had been."""

import copy
import csv
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from conftest import QUICK, ROOT
from processes import FEW, TIMES, flags, n_rows, outcome

import fedalg
from fedmerge import partitions, provenance
from fedmerge.algorithms.las import LaSFL
from fedmerge.checkpoint.policy import Interrupted, Keeper
from fedmerge.checkpoint.store import Checkpoints
from fedmerge.config.resolve import resolve
from fedmerge.errors import InputError
from fedmerge.registry import ALGORITHMS
from fedmerge.reporting import run_status
from fedmerge.simulation import evaluation, personal_models, rounds, run_state, state_checks
from fedmerge.simulation.run_state import resume, state_of

SETTINGS = [
    # One of each kind of state; that any algorithm's is whole, test_agg_utils.py and test_ranks.py tell.
    *({"algorithm": name} for name in ("fedavg", "fedacg", "fedbn", "lss", "median", "moon", "topk")),
    {"algorithm": "centralised", "n_clients": 1},
    {"algorithm": "las", "preset": "compact", "server_momentum": 0.5, "residual_momentum": 0.5, "wire": "real"},
    {"algorithm": "las", "residual": "server", "downlink": "individual", "down_bits": 4, "participation": 0.3},
    {"algorithm": "fedavg", "wire": "real", "value_bits": 8, "eval_every": 4},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_a_run_killed_at_any_moment_ends_as_one_that_was_not(tmp_path, spawn, settings):
    pools = {"n_verts": 2, "soup_epochs": 1}
    settings = {**FEW, **settings, "checkpoint_every": 1}
    method = settings.get("local", settings["algorithm"])
    if method in ("lss", "soups", "diwa"):
        settings = {**settings, **pools}
        del settings["n_client_epochs"]
    if settings["algorithm"] == "centralised":
        del settings["participation"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    started = time.monotonic()
    process = spawn(flags({**settings, "save_weights": whole / "w.pt"}, whole))
    process.join()
    seconds, kills = time.monotonic() - started, 0
    assert process.exitcode == 0
    moments = random.Random(str(settings))
    for rows in (moments.randint(2, FEW["n_epochs"] - 1), None):  # after the first checkpoint, then anywhere
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


# --------------------------------------------------------------------------------------------------------------------
# Being asked to end


LONG = ("--n_epochs", "400", "--n_clients", "4", "--participation", "1", "--n_client_epochs", "1", "--lr", "0.05")


@pytest.fixture
def started(tmp_path):
    """A function of flags -> a process of fedalg.py that has trained a round, or, with `first`, begun to."""
    processes = []

    def start(*more, first=False):
        files = {"metrics_dir": "m", "plots_dir": "p", "checkpoint_dir": "c", "results_file": "r.csv"}
        where = [w for name, file in files.items() for w in (f"--{name}", str(tmp_path / file))]
        command = [sys.executable, str(ROOT / "fedalg.py"), *where, *more]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        processes.append(process)
        while first and not list((tmp_path / "m").glob("*.csv")):
            assert process.poll() is None
        assert first or process.stdout.readline().startswith("round "), process.stderr.read()
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_ends_a_run_that_can_go_on(tmp_path, started, name):
    process = started(*LONG)
    process.send_signal(getattr(signal, name))
    _, said = process.communicate(timeout=60)
    assert process.returncode == fedalg.NOT_FINISHED
    assert f"stopped by {name} after round" in said
    assert said.count("\n") == 3  # what the split is, that it heard, and that it ended
    rounds = n_rows(tmp_path)
    process = started(*LONG)
    assert n_rows(tmp_path) >= rounds >= 1
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert re.search(r"goes on after round [1-9]\d* of 400", said)


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM", "SIGINT"])
def test_a_signal_to_a_run_that_is_finished_is_no_failure(started, name):
    process = started("--n_epochs", "1", "--n_clients", "2", "--participation", "1", "--n_client_epochs", "1")
    assert "test accuracy" in process.stdout.readline()
    while process.poll() is None:  # as the interpreter ends
        process.send_signal(getattr(signal, name))
        time.sleep(0.005)
    assert process.returncode == 0


@pytest.mark.parametrize(("name", "wait"), [("SIGTERM", 1.1), ("SIGINT", 0)])
def test_a_second_signal_ends_a_run_at_once(started, name, wait):
    process = started("--n_clients", "1", "--participation", "1", "--n_client_epochs", "1000", first=True)
    process.send_signal(getattr(signal, name))
    heard = "ends and saves after the client at hand (none has ended yet); again ends at once\n"
    while heard not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(wait)  # a SIGTERM at once is taken for the first one
    process.send_signal(getattr(signal, name))
    assert process.wait(timeout=30) == 128 + getattr(signal, name)


def keep(tmp_path, **settings):
    """The Checkpoints of a run of two rounds of `settings`, saved after each, and its Experiment."""
    settings = {
        **QUICK,
        "device": "cpu",
        **{f"{k}_dir": str(tmp_path / k) for k in ("metrics", "checkpoint")},
        **settings,
    }
    exp = fedalg.prepare(resolve(settings))
    keeper = Keeper(Checkpoints(tmp_path / "checkpoint", exp.name), every=1)
    for round in (1, 2):
        exp.rows.append(rounds.train_round(exp, round))
        evaluation.evaluate_round(exp, exp.rows[-1])
        keeper.save(exp)
    return keeper.checkpoints, exp


def test_a_run_that_is_stopped_within_a_round_goes_on_with_the_next_client(experiment, tmp_path):
    whole, other = (experiment(algorithm="las", preset="compact", n_epochs=3) for _ in range(2))
    keeper = Keeper(Checkpoints(tmp_path / "c", whole.name))
    keeper.asked = signal.SIGTERM
    for exp in (whole, other):
        exp.rows.append(rounds.train_round(exp, 1))
    numbers = []
    for _ in range(4):
        with pytest.raises(Interrupted, match=f"round 2, client {len(numbers) + 1} of 4"):
            rounds.train_round(other, 2, keeper)
        numbers.append(other.cohort.done[-1].number)
        other = experiment(algorithm="las", preset="compact", n_epochs=3)
        assert resume(other, keeper.checkpoints)
    assert numbers == other.cohort.numbers
    rows = [rounds.train_round(exp, 2) for exp in (whole, other)]
    assert {k: v for k, v in rows[0].items() if k not in TIMES} == {k: v for k, v in rows[1].items() if k not in TIMES}
    assert torch.equal(whole.theta, other.theta)
    assert torch.equal(whole.downlink.model, other.downlink.model)


# --------------------------------------------------------------------------------------------------------------------
# What is on the disk


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, experiment, capsys):
    kept, _ = keep(tmp_path)
    content = kept.newest.read_bytes()
    place = random.Random(0)
    damages = [b"", content[:10], content[:-1], content + b"x", b"x" + content[1:]]
    for _ in range(10):
        i = place.randrange(len(content))
        damages.append(content[:i] + bytes([content[i] ^ 1 << place.randrange(8)]) + content[i + 1 :])
    for damaged in damages:
        kept.newest.write_bytes(damaged)
        fresh = experiment()
        assert resume(fresh, kept)
        assert len(fresh.rows) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"warning: {kept.newest} is damaged (")
    kept.previous.write_bytes(damages[1])
    with pytest.raises(InputError, match="no checkpoint of this run is whole: --fresh"):
        resume(experiment(), kept)


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch exploded",))


def test_a_checkpoint_runs_no_code(tmp_path, experiment, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    kept, exp = keep(tmp_path)
    kept.save({**state_of(exp), "algorithm": Bomb()})
    assert resume(experiment(), kept)
    assert "is damaged" in capsys.readouterr().err
    assert not (tmp_path / "exploded").exists()


def put(*path):
    """A function of a state that puts the last of `path` where the others lead, or what it makes of what is there."""
    *way, last, value = path

    def change(state):
        for name in way:
            state = state[name]
        state[last] = value(state[last]) if callable(value) else value

    return change


def in_rows(**columns):
    return lambda state: [row.update(columns) for row in state["rows"]]


def in_cohort(**changes):
    """The state of a round under way of which no client has sent, changed."""
    fresh = {"sums": {}, "deltas": None, "masks": None, "down": {}, "done": [], "seconds": 0.0}
    return lambda state: state.update(cohort=fresh | changes)


ONE = torch.zeros(())
SENT = {"number": 0, "n_samples": 1, "bytes": 1, "seen": 1, "loss": ONE, "hits": ONE, "total": ONE, "kept": 1}
SENT["masked"] = True
ODD = {
    "theta of another size": put("theta", torch.zeros(3)),
    "theta of numbers that are none": put("theta", lambda t: t * torch.nan),
    "a sparse theta": put("theta", lambda t: t.to_sparse()),
    "an expanded theta": put("theta", lambda t: t[:1].expand(t.shape)),
    "theta of float64": put("theta", lambda t: t.double()),
    "no theta": lambda state: state.pop("theta"),
    "more than there is": put("evil", 1),
    "rows that are none": put("rows", 3),
    "rows without bytes": lambda state: [row.pop("bytes_up") for row in state["rows"]],
    "rows of text": put("rows", [{"epoch": "x"}] * 2),
    "rows twice": put("rows", lambda rows: rows * 2),
    "rows in another order": put("rows", lambda rows: rows[::-1]),
    "more rows than rounds": put("rows", lambda rows: [row | {"epoch": i} for i, row in enumerate(rows * 3, 1)]),
    "a foreign column": in_rows(evil="=cmd()"),
    "an accuracy of text": in_rows(val_accs="9"),
    "an accuracy that is none": in_rows(val_accs=float("nan")),
    "an accuracy above 1": in_rows(test_accs=1.5),
    "endless seconds": in_rows(train_seconds=float("inf")),
    "a count of 5,000 digits": in_rows(bytes_up=10**5000),
    "a loss of 5,000 digits": in_rows(val_losses=10**5000),
    "bytes below 0": in_rows(bytes_down=-1),
    "totals that do not add up": in_rows(bytes_up_total=7),
    "half an evaluation": lambda state: [row.pop("test_accs") for row in state["rows"]],
    "residuals of another size": lambda state: state["algorithm"]["left"].update({0: torch.zeros(3)}),
    "residuals that are numbers": lambda state: state["algorithm"]["left"].update({0: 5}),
    "residuals of nobody": lambda state: state["algorithm"]["left"].update({"x": torch.zeros(3)}),
    "residuals of a client that there is not": put("algorithm", "left", lambda d: d | {99: next(iter(d.values()))}),
    "no residuals": lambda state: state["algorithm"].pop("left"),
    "no algorithm": put("algorithm", None),
    "a local method's of another": put("local", {"x": 1}),
    "an empty downlink": put("downlink", {}),
    "seen by one": put("downlink", "seen", [0]),
    "seen in words": put("downlink", "seen", lambda seen: ["a"] * len(seen)),
    "seen in the future": put("downlink", "seen", lambda seen: [10**6] * len(seen)),
    "seen before the start": put("downlink", "seen", lambda seen: [-5] * len(seen)),
    "a version beyond int32": put("downlink", "version", 2**31),
    "another version": put("downlink", "version", 1),
    "sizes below 0": put("downlink", "sizes", lambda sizes: [-(10**9)] * len(sizes)),
    "sizes of text": put("downlink", "sizes", lambda sizes: ["a"] * len(sizes)),
    "more sizes than rounds": put("downlink", "sizes", [1] * 9),
    "sizes beyond the whole model": put("downlink", "sizes", lambda sizes: [s * 10**6 for s in sizes]),
    "a model of another size": put("downlink", "model", torch.zeros(5)),
    "changes of another size": put("downlink", "changed_at", torch.zeros(5)),
    "changes in the future": put("downlink", "changed_at", lambda t: t + 9),
    "messages that are none": put("downlink", "messages", {1: torch.zeros(9, dtype=torch.uint8)}),
    "traffic of text": put("traffic", {0: ["a", "b", "c"]}),
    "traffic of one number": put("traffic", {0: [1]}),
    "traffic of nobody": put("traffic", {"a": 1}),
    "no traffic": put("traffic", {}),
    "a cohort without anything": put("cohort", {}),
    "a cohort of one list": put("cohort", {"done": []}),
    "sums of another size": in_cohort(sums={"update": torch.zeros(2)}),
    "sums of another merge": in_cohort(sums={"sign": torch.zeros(2)}),
    "another client": in_cohort(done=[SENT] * 5, down={0: 1}),
    "deltas beside sums": in_cohort(deltas=torch.zeros(0, 3)),
    "seconds that are none": in_cohort(seconds=float("nan")),
    "downloads of others": in_cohort(down={19: -1}),
    "no settings": put("settings", None),
    "settings in a list": put("settings", []),
    "a folder that is a number": put("settings", "metrics_dir", 5),
    "a tensor among the settings": put("settings", "lr", torch.zeros(3)),
    "a version in words": put("payload_version", "2"),
    "a split that is a number": put("split", 3),
    "a code that is a number": put("code", 3),
}


@pytest.fixture(scope="module")
def compact(tmp_path_factory):
    """Settings, Checkpoints and their last state, of a run that has every kind of state; it is not written to."""
    settings = {"algorithm": "las", "preset": "compact", "n_epochs": 4, "n_clients": 6, "participation": 0.5}
    kept, exp = keep(tmp_path_factory.mktemp("compact"), **settings)
    return settings, kept, state_of(exp)


@pytest.mark.parametrize("kind", ODD)
def test_a_checkpoint_of_odd_content_falls_back_and_leaves_nothing(tmp_path, compact, capsys, kind):
    settings, before, state = compact
    shutil.copytree(before.newest.parent, tmp_path / "c")
    kept, state = Checkpoints(tmp_path / "c", before.newest.stem), copy.deepcopy(state)
    ODD[kind](state)
    kept.save(state)
    exp = fedalg.prepare(resolve({**QUICK, "device": "cpu", **settings, "metrics_dir": state_dir(before)}))
    untouched = state_of(exp)
    assert resume(exp, kept)
    assert len(exp.rows) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {kept.newest} is damaged (")
    kept.save(state)
    shutil.copy(kept.newest, kept.previous)
    exp = fedalg.prepare(exp.args)
    with pytest.raises(InputError, match="no checkpoint of this run is whole"):
        resume(exp, kept)
    assert same(state_of(exp), untouched)


def state_dir(kept):
    return str(kept.newest.parent.parent / "metrics")


def same(a, b):
    """Whether two states are equal."""
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


def test_every_column_has_a_kind():
    known = state_checks.ALWAYS | state_checks.TRAINED | state_checks.EVALUATED
    assert sorted(known) == sorted(fedalg.COLUMNS)


POOLS = ("lss", "soups", "diwa")
KEPT = [name for name in ALGORITHMS if name != "centralised"]


@pytest.mark.parametrize("name", KEPT)
def test_every_algorithm_says_how_long_its_vectors_are(name, experiment):
    pool = {"local": "moon"} if name == "fedavg" else {"n_verts": 1, "soup_epochs": 1} if name in POOLS else {}
    exp = experiment(algorithm=name, n_clients=4, participation=1, local_steps=1, **pool)
    exp.rows.append(rounds.train_round(exp, 1))
    for keeps in (exp.algorithm, exp.trainer.local):
        for kept, value in keeps.state().items():
            for vector in value.values() if isinstance(value, dict) else [value]:
                assert len(vector) == keeps.kept_length(kept, exp.model.layout)


def test_a_checkpoint_of_other_settings_is_refused_by_their_name(tmp_path, experiment):
    kept, _ = keep(tmp_path)
    with pytest.raises(InputError, match=r"of a run with lr = 0\.05, not 0\.1"):
        resume(experiment(lr=0.1), kept)
    split = tmp_path / "split.json"
    labels = experiment().splits.train.labels
    partitions.save_partition(split, labels, [torch.arange(i, 1294, 20) for i in range(20)], {})
    exp = experiment(partition_file=str(split))
    exp.args.dirichlet = "iid"  # as if it had drawn it
    with pytest.raises(InputError, match="on another split"):
        resume(exp, kept)
    with pytest.raises(InputError, match="a run with dirichlet = iid, not None"):
        resume(experiment(partition_file=str(split)), kept)


def test_a_folder_is_the_same_by_another_name(tmp_path, experiment):
    kept, exp = keep(tmp_path)
    (tmp_path / "link").symlink_to(exp.args.metrics_dir)
    exp.args.metrics_dir = str(tmp_path / "link")
    assert resume(exp, kept)


def test_a_checkpoint_of_other_data_is_refused(tmp_path, experiment):
    kept, _ = keep(tmp_path)
    exp = experiment()
    exp.splits = replace(exp.splits, fingerprint="other")
    with pytest.raises(InputError, match="of a run on other files of DIGITS"):
        resume(exp, kept)


def test_a_checkpoint_of_other_code_is_taken_with_a_warning(tmp_path, experiment, capsys, monkeypatch):
    kept, _ = keep(tmp_path)
    monkeypatch.setattr(provenance, "code_hash", lambda settings: "another")
    assert resume(experiment(), kept)
    assert "another version of the code" in capsys.readouterr().err


def test_two_checkpoints_are_kept_and_none_of_a_finished_run(tmp_path, program):
    kept, _ = keep(tmp_path)
    assert sorted(os.listdir(tmp_path / "checkpoint")) == sorted([kept.newest.name, kept.previous.name])
    leftover = kept.newest.with_name(f".{kept.newest.name}.1.tmp")
    leftover.write_bytes(b"of a killed process")
    words = [w for k, v in QUICK.items() for w in (f"--{k}", v)]
    done = program(*words, "--checkpoint_dir", tmp_path / "checkpoint")
    assert "goes on after round 2 of 2" in done.stderr
    assert not list((tmp_path / "checkpoint").glob("*.pt"))
    assert not leftover.exists()


def test_fresh_starts_over(tmp_path, program):
    keep(tmp_path)
    words = [w for k, v in QUICK.items() for w in (f"--{k}", v)]
    done = program(*words, "--checkpoint_dir", tmp_path / "checkpoint", "--fresh")
    assert "goes on" not in done.stderr
    assert "round 1/2" in done.stdout
    assert not list((tmp_path / "checkpoint").glob("*.pt"))


def test_checkpoints_take_about_a_hundredth_of_the_time(monkeypatch, tmp_path, experiment):
    """By a clock of ours: saving takes 0.5 s, a round 7 s."""
    now = [0.0]
    monkeypatch.setattr(run_state.time, "monotonic", lambda: now[0])
    exp, saved = experiment(n_epochs=100), []

    def save(state):
        saved.append(len(exp.rows))
        now[0] += 0.5

    kept = Checkpoints(tmp_path, "x")
    monkeypatch.setattr(kept, "save", save)
    keeper = Keeper(kept)
    for round in range(1, 41):
        now[0] += 7
        exp.rows.append({"epoch": round})
        keeper.after_round(exp)
    # 21 s at first, for a guess of 0.1 s; then as soon as half a second more is below 0.7 % of the time: 143 s, 214 s
    assert saved == [3, 21, 31]
    now[0] += 601
    keeper.after_client(exp)  # in the middle of a long round
    assert len(saved) == 4


# --------------------------------------------------------------------------------------------------------------------
# A disk that is full, a folder that is gone


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
    (disk / "filler").write_bytes(bytes(56 * 1024))  # leaves two pages
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


# --------------------------------------------------------------------------------------------------------------------
# The last seconds of a run


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


def test_a_signal_ends_a_run_that_saves_its_clients(experiment, tmp_path):
    kept, exp = keep(tmp_path, save_clients=str(tmp_path / "clients"))
    keeper = Keeper(kept)
    keeper.asked = signal.SIGUSR1
    with pytest.raises(Interrupted, match="after round 2; the same"):
        personal_models.save_clients(exp, keeper)


@pytest.mark.parametrize(("name", "value"), [("wire", "real"), ("metrics_dir", "elsewhere")])
def test_a_checkpoint_of_another_wire_or_place_is_refused(tmp_path, experiment, name, value):
    kept, _ = keep(tmp_path)
    with pytest.raises(InputError, match=f"of a run with {name} = "):
        resume(experiment(**{name: value}), kept)


def test_going_on_writes_over_nothing_that_is_not_its_own(tmp_path, program):
    keep(tmp_path)
    (tmp_path / "precious.pt").write_bytes(b"of somebody")
    words = [w for k, v in QUICK.items() for w in (f"--{k}", v)]
    done = program(*words, "--checkpoint_dir", tmp_path / "checkpoint", "--save_weights", tmp_path / "precious.pt")
    assert done.returncode == 2
    assert "precious.pt: is there already" in done.stderr
    assert (tmp_path / "precious.pt").read_bytes() == b"of somebody"


def test_fresh_holds_once_not_whenever_a_job_is_requeued(tmp_path, program, monkeypatch):
    keep(tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    words = [w for k, v in QUICK.items() for w in (f"--{k}", v)]
    done = program(*words, "--checkpoint_dir", tmp_path / "checkpoint", "--fresh")
    assert "goes on after round 2 of 2" in done.stderr


DIVERGED = [{"algorithm": name} for name in ("fedavg", "moon", "fedbn", "median")]


@pytest.mark.parametrize("settings", [*DIVERGED, {"algorithm": "las", "residual": "client"}], ids=str)
def test_a_checkpoint_with_a_client_that_has_just_diverged_is_whole(tmp_path, experiment, settings):
    """It is only forgotten when its round is merged."""
    settings = {**settings, "on_nan": "skip", "norm": "batch", "min_client_samples": 2, "local_steps": 2}
    runs, kept = [], Checkpoints(tmp_path / "c", "run")
    for stops in (False, True):
        exp = experiment(**settings)
        number, update = rounds.participants(exp, 1)[0][1], exp.algorithm.local_update

        def poisoned(start, client, update=update, number=number):
            return update(start * torch.nan if client.number == number else start, client)

        exp.algorithm.local_update = poisoned
        if stops:
            with pytest.raises(Interrupted):
                rounds.train_round(exp, 1, AfterClients(kept, 2))
            exp = experiment(**settings)
            exp.algorithm.local_update = lambda start, client, exp=exp: type(exp.algorithm).local_update(
                exp.algorithm, start, client
            )
            assert resume(exp, kept)
            assert len(exp.cohort.done) >= 2
        exp.rows.append(rounds.train_round(exp, 1))
        runs.append(exp)
    assert runs[0].rows[0]["clients"] == runs[1].rows[0]["clients"] == 3
    assert torch.equal(runs[0].theta, runs[1].theta)


class AfterClients(Keeper):
    """Saves and stops when so many clients have sent."""

    def __init__(self, kept, n):
        super().__init__(kept)
        self.n = n

    def due(self):
        self.n -= 1
        return self.n <= 0

    def after_client(self, exp):
        self.save(exp)
        raise Interrupted


class OfMyOwn(LaSFL):
    """Somebody's, derived from one that says how long what it keeps is."""

    own = (*LaSFL.own, "count", "lowest", "even", "strided")
    count, lowest, even, strided = 0, None, False, None

    def merge(self, theta, arrived):
        self.count, self.even = self.count + 1, not self.even
        self.lowest = torch.full((3,), torch.inf)
        self.strided = torch.arange(12.0).view(3, 4).t()
        return super().merge(theta, arrived)


def test_what_an_algorithm_of_ones_own_keeps_is_taken_back(tmp_path, experiment):
    kept, exps = Checkpoints(tmp_path / "c", "run"), [experiment(), experiment()]
    for exp in exps:
        exp.algorithm = OfMyOwn(exp.model.layout, server_momentum=0.5)
    exps[0].rows.append(rounds.train_round(exps[0], 1))
    kept.save(state_of(exps[0]))
    assert resume(exps[1], kept)
    mine, back = exps[0].algorithm, exps[1].algorithm
    assert (back.count, back.even) == (1, True)
    assert all(torch.equal(getattr(mine, name), getattr(back, name)) for name in ("lowest", "strided", "velocity"))
