"""What benchmarks compare: a bare loop must train the models that a round of this program trains."""

import contextlib
import io
import json
import os
import re
import runpy
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import gpu_report
import limits
import round_time
import settings

from fedmerge import datasets
from fedmerge.datasets import images
from fedmerge.errors import InputError


def cut_down(monkeypatch, name):
    """Make the work `name` one of four clients with a batch of eight images, or two, and return the name."""
    small = {"n_clients": 4, "participation": 0.5, "dirichlet": "iid", "batch_size": 8, "n_client_epochs": 1}
    monkeypatch.setitem(round_time.WORKS, name, round_time.WORKS[name] | small)
    n, g = 64 if name == "W1" else 32, torch.Generator().manual_seed(0)
    images = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, generator=g)
    train, half = datasets.Images(images, torch.randint(10, (n,), generator=g)), torch.full((3,), 0.5)
    monkeypatch.setattr(round_time, "synthetic", lambda device: datasets.Splits(train, train, train, 10, half, half))
    return name


@pytest.fixture
def work(monkeypatch):
    return cut_down(monkeypatch, "W1")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["W1", "W3"])
def test_the_bare_loop_trains_the_same_model(name, capsys, monkeypatch):
    round_time.compare(cut_down(monkeypatch, name), 2, "cpu")
    *_, ratio, its_range, apart, _ = (column.strip() for column in capsys.readouterr().out.split("|"))
    assert float(apart) < 1e-5
    low, high = map(float, its_range.split(" to "))
    assert 0 < low <= float(ratio) <= high


def test_data_loaders_give_every_image_once(work):
    loop = round_time.LoaderLoop(round_time.experiment(work, "cpu"))
    batches = list(loop.batches(loop.parts[1], torch.Generator().manual_seed(3)))
    assert [len(y) for _, y in batches] == [8, 8]
    given = torch.cat([x for x, _ in batches]).flatten(1)
    own = loop.x[loop.parts[1]].flatten(1)
    assert sorted(map(tuple, given.tolist())) == sorted(map(tuple, own.tolist()))
    before = {name: tensor.clone() for name, tensor in loop.state.items()}
    loop.round(1)
    assert any(not torch.equal(before[name], tensor) for name, tensor in loop.state.items())


@pytest.mark.slow
def test_limits_are_of_the_samples_of_a_round(work, capsys, monkeypatch):
    monkeypatch.setattr(limits, "LARGEST", 64)
    monkeypatch.setitem(limits.PRODUCTS, "cpu", (64,))
    limits.compare(work, 1, torch.device("cpu"))
    peak, bound, *rounds = capsys.readouterr().out.splitlines()
    assert "batches of 64" in peak
    assert float(re.search(r"\| ([\d.]+) \| \| \|", bound)[1]) > 0
    for row in rounds:
        name, seconds, share = (column.strip() for column in row.split("|")[2:5])
        assert name in limits.SETTINGS["cpu"]
        assert float(share) == pytest.approx(float(peak.split("|")[3]) / float(seconds), abs=0.02)


def test_operations_are_counted_by_the_sample():
    passes = limits.Passes(round_time.experiment("W1", "cpu"), 4)
    # Multiplications and additions of the four layers, forward; twice that backward, but for the images' own gradient.
    layers = [2 * 32 * 32 * 32 * 75, 2 * 64 * 16 * 16 * 800, 2 * 4096 * 512, 2 * 512 * 10]
    assert limits.flops(passes) == 3 * sum(layers) - layers[0]


@pytest.mark.slow
def test_a_setting_is_one_in_its_rounds_and_not_after(work, capsys, monkeypatch):
    formats, normalise = [], datasets.Splits.normalise

    def watched(splits, batch):
        x = normalise(splits, batch)
        formats.append(x.is_contiguous(memory_format=torch.channels_last))
        return x

    monkeypatch.setattr(datasets.Splits, "normalise", watched)
    ways = {"as it is": ({}, settings.PLAIN), "contiguous memory": settings.WAYS["cpu"]["machine"]["contiguous memory"]}
    ways |= {name: ({"parallel_clients": n}, settings.PLAIN) for name, n in (("two", 2), ("many", 99))}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    settings.compare(work, ways, 1, "cpu")
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in capsys.readouterr().out.splitlines()]
    ways.pop("many")  # as many as the clients of a round: two once more
    assert [row[:2] for row in rows] == [[work, name] for name in ways]
    assert all(float(row[5]) < 1e-5 for row in rows)
    formats = formats[len(ways) + 1 :]  # a network is tried on two images when it is made
    a_round = len(formats) // 6  # of three ways and two rounds
    assert formats == 2 * ([True] * a_round + [False] * a_round + [True] * a_round)
    assert images.MEMORY is torch.channels_last


@pytest.mark.slow
def test_a_way_that_fails_is_told_and_the_others_are_compared(work, capsys, monkeypatch):
    def refused(run, r):
        raise RuntimeError("no such graph\nof this driver")

    bad = ({"capture": False}, lambda: settings.other(settings, "train_round", refused))
    ways = {"as it is": ({}, settings.PLAIN), "bad": bad, "two": ({"parallel_clients": 2}, settings.PLAIN)}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    settings.compare(work, ways, 5, "cpu", minutes=0)  # one round that counts
    failed, *rows = capsys.readouterr().out.splitlines()
    assert failed == f"| {work} | bad | failed: no such graph | | | |"
    bad = ({}, bad[1])
    settings.compare(work, {"two": ways["two"], "as it is": bad}, 1, "cpu")
    assert "as it is | failed" in capsys.readouterr().out
    assert [row.split("|")[2].strip() for row in rows] == ["as it is", "two"]


@pytest.mark.slow
def test_evaluations_are_in_batches_of_each_size(work, capsys, monkeypatch):
    sizes, normalise = [], datasets.Splits.normalise
    monkeypatch.setattr(
        datasets.Splits, "normalise", lambda splits, batch: sizes.append(len(batch)) or normalise(splits, batch)
    )
    monkeypatch.setattr(settings, "EVALUATED", 48)
    monkeypatch.setitem(settings.BATCHES, "cpu", (16, 32))
    settings.evaluations(work, 1, "cpu")
    of_own, *others = capsys.readouterr().out.splitlines()
    assert "(as it is)" in of_own
    assert [row.split("|")[2].strip() for row in others] == ["16", "32"]
    sizes.remove(2)  # a network is tried on two images when it is made
    assert sizes == 2 * [48, *3 * [16], 32, 16]


# --------------------------------------------------------------------------------------------------------------------
# The report on a GPU

TABLE = "| work | ratio | bytes |\n|---|---|---|\n| W1 | 0.71 | 1,024 |\n"


@pytest.fixture
def report_of(tmp_path, monkeypatch):
    """A function of ({step: Python code or (code, minutes)}, flags) -> (exit status, the report as text, as JSON)."""

    def make(codes, *flags):
        def step(code, minutes=1):
            return gpu_report.Step("title", ("-c", code), minutes)

        steps = {name: step(*(code if isinstance(code, tuple) else (code,))) for name, code in codes.items()}
        monkeypatch.setattr(gpu_report, "all_steps", lambda: steps)
        rc = gpu_report.main(["--folder", str(tmp_path), "--device", "cpu", *flags])
        return rc, (tmp_path / "report.md").read_text(), json.loads((tmp_path / "report.json").read_text())

    return make


@pytest.mark.slow
def test_a_report_goes_on_where_it_was(report_of, tmp_path):
    count = tmp_path / "count"
    steps = {
        "first": f"print({TABLE!r}); open({str(count)!r}, 'a').write('x')",
        "long": ("print('ready')", 100),
    }
    rc, text, found = report_of(steps, "--steps", "first")
    assert rc == 0
    assert "- open: long\n- failed: nothing" in text
    assert "- left out: pfl, which has no environment here" in text or gpu_report.installed("pfl")
    assert TABLE.strip() in text
    assert found["open"] == ["long"]
    assert found["steps"]["first"]["tables"] == [[{"work": "W1", "ratio": 0.71, "bytes": 1024}]]
    assert found["machine"]["torch"] == found["steps"]["first"]["machine"]["torch"] == torch.__version__
    rc, text, found = report_of({**steps, "long": "print('ready')"})
    assert rc == 0
    assert "- open: nothing" in text
    assert list(found["steps"]) == ["first", "long"]
    assert count.read_text() == "x"  # once


def made_up(step):
    return {"title": step.title, "command": "", "at": "", "seconds": 0}


@pytest.mark.slow
def test_no_step_begins_that_may_not_end_in_time(report_of, monkeypatch):
    now = iter([0, *range(100, 200)])  # 100 seconds are gone when the second step could begin
    monkeypatch.setattr(gpu_report.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(gpu_report, "run", lambda step, *_: {"rc": 0, "output": "", "errors": "", **made_up(step)})
    rc, _, found = report_of({"short": ("pass", 9), "long": ("pass", 9)}, "--minutes", "9")
    assert rc == 3
    assert found["open"] == ["long"]


@pytest.mark.slow
def test_what_fails_is_told_and_can_be_run_again(report_of, tmp_path):
    count = tmp_path / "count"
    bad = {"bad": "print('oh'); raise SystemExit(7)", "good": f"open({str(count)!r}, 'a').write('x')"}
    rc, text, found = report_of(bad)
    assert rc == 1
    assert "it failed" in text
    assert "oh" in text
    assert [step["rc"] for step in found["steps"].values()] == [7, 0]
    mended = {**bad, "bad": "print('well')"}
    assert report_of(mended)[0] == 1
    rc, text, found = report_of(mended, "--again", "--steps", "good")
    assert (rc, found["open"], found["failed"]) == (0, [], ["bad"])  # nothing is forgotten that is not run
    assert "oh" in text
    rc, text, _ = report_of(mended, "--again")
    assert rc == 0
    assert "oh" not in text
    assert count.read_text() == "x"  # once


@pytest.mark.slow
def test_a_step_that_takes_too_long_is_stopped_with_what_it_started(report_of, tmp_path):
    alive = tmp_path / "alive"
    child = f"import time\nwhile True: open({str(alive)!r}, 'a').write('x'); time.sleep(0.01)"
    code = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    rc, text, _ = report_of({"slow": (code, 0.08)})
    assert rc == 1
    assert "stopped after 0.08 minutes" in text
    assert "begun" in text
    size = alive.stat().st_size
    time.sleep(0.2)
    assert alive.stat().st_size == size > 0


@pytest.mark.slow
def test_what_a_step_prints_never_stops_the_report(report_of):
    printed = b"| a | b |\n|---|---|\n| 1 | - |\nwarning\n| 2 |\n| - | - |\n| 3 " + b"\xe2\x82"
    code = f"import sys; sys.stdout.buffer.write({printed!r})"
    rc, _, found = report_of({"odd": code})
    assert rc == 0
    assert found["steps"]["odd"]["tables"] == [[{"a": 1, "b": "-"}, {"a": "-", "b": "-"}]]
    assert report_of({"odd": code})[0] == 0


def go_slowly(folder):
    """What a child process does: make a report of a step that says who it is and takes a minute."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored
    code = "import os, time; print(os.getpid()); time.sleep(60)"
    gpu_report.all_steps = lambda: {"slow": gpu_report.Step("title", ("-c", code), 2)}
    sys.exit(gpu_report.main(["--folder", str(folder), "--device", "cpu"]))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda number: number.name)
def test_no_step_begins_beside_one_that_was_left(number, spawn, tmp_path):
    """A report that is ended ends its step, too, or, if it is killed, the next one says that the step is going on."""
    report, log, folder = (
        spawn(tmp_path, function=go_slowly),
        tmp_path / "cpu_slow.out",
        gpu_report.Folder(tmp_path, {}, "cpu"),
    )
    while not log.exists() or not log.read_text().endswith("\n"):
        time.sleep(0.01)
    with pytest.raises(InputError, match="a step of another call is going on there"), folder.alone():
        pass
    os.kill(report.pid, number)
    report.join()
    if number == signal.SIGKILL:
        with pytest.raises(InputError, match="a step of another call is going on there"), folder.alone():
            pass
        os.kill(int(log.read_text()), signal.SIGKILL)
        time.sleep(0.2)
    else:
        assert report.exitcode == 128 + number
    with folder.alone():
        assert list(tmp_path.glob("*.json")) == []


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with gpu_report.ending_with_children():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert callable(signal.getsignal(signal.SIGTERM))
    finally:
        signal.signal(signal.SIGHUP, before)


def ask_for_help(commands, path):
    """What a child process does: ask each of the scripts for its help, as if none had been imported before."""
    said, paths = {}, [folder for folder in sys.path if Path(folder).resolve() not in (ROOT, ROOT / "benchmarks")]
    for name, words in commands.items():
        for module in [m for m in sys.modules if m.split(".")[0] == "fedmerge" or m in SCRIPTS]:
            del sys.modules[module]
        sys.path[:], sys.argv = [str(ROOT / "benchmarks"), *paths], [*words, "--help"]  # words before it are read first
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                runpy.run_path(words[0], run_name="__main__")
            except SystemExit as ended:
                said[name] = ended.code
            except ImportError as error:
                said[name] = str(error)
    path.write_text(json.dumps(said))


SCRIPTS = [path.stem for path in (ROOT / "benchmarks").glob("*.py")]


def test_the_steps_are_commands_that_are_there(spawn, tmp_path):
    commands = {
        name: [word.format(device="cuda") for word in step.words] for name, step in gpu_report.all_steps().items()
    }
    commands.pop("tests")
    spawn(commands, tmp_path / "said", function=ask_for_help).join()
    assert json.loads((tmp_path / "said").read_text()) == dict.fromkeys(commands, 0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--steps", "nothing"), "--steps nothing: there are tests, round, "),
        (("--minutes", "1"), "--minutes 1: a step may take 6"),
    ],
)
def test_a_report_that_cannot_be_is_refused(flags, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        gpu_report.main(["--folder", str(tmp_path / "none"), *flags])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
