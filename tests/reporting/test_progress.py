"""What is shown of a run while it trains."""

import io
import re
import sys

import pytest

import fedalg
from fedmerge.reporting import progress
from fedmerge.reporting.progress import Progress, duration


@pytest.fixture
def clock(monkeypatch):
    """A list whose only element is the time, in seconds."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def terminal(monkeypatch):
    """A function that makes standard error a terminal of 80 columns, and returns what it shows, a StringIO."""

    def begin():
        screen = io.StringIO()
        screen.isatty = lambda: True
        monkeypatch.setattr(sys, "stderr", screen)
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setenv("LINES", "25")
        return screen

    return begin


def train(shown, clock, round, seconds, clients=None):
    """Show a round in which each sample takes so many seconds, and none is lost between; or its first `clients`."""
    run = shown.run
    cohort = run.server.begin(round)
    shown.begin(cohort, cohort.ids)
    for number in cohort.ids[:clients]:
        clock[0] += seconds * run.clients.load_of(number)
        cohort.done.append(number)
        shown.after_client(cohort)


def row(run, train_seconds=1.0, eval_seconds=1.0):
    """The row of a round, which is among the experiment's from now on."""
    figures = {"bytes_up_total": 5e6, "bytes_down_total": 7.3e6, "train_seconds": train_seconds, "train_losses": 1.9}
    run.history.rows.append({**figures, "test_accs": 0.41, "eval_seconds": eval_seconds})
    return run.history.rows[-1]


def train_shown(run):
    """Train all rounds of an Experiment, and show them, as fedalg.finish does."""
    with Progress(run) as shown:
        run.clients.watchers = [shown]
        fedalg.run_rounds(run, [shown.after_round])


def test_without_a_terminal_a_round_is_a_line(experiment, capsys):
    train_shown(experiment(eval_every=2, n_epochs=3))
    said = capsys.readouterr()
    lines = said.out.splitlines()
    number = r"[0-9.]+"
    sent = rf"train loss {number}, {number} MB so far, {number} s training"
    assert re.fullmatch(rf"round 1/3: {sent}, \d+ s to go", lines[0])
    assert re.fullmatch(rf"round 2/3: test acc {number}, {sent} \+ {number} s evaluation, \d+ s to go", lines[1])
    assert re.fullmatch(rf"round 3/3: test acc {number}, {sent} \+ {number} s evaluation", lines[2])
    assert (len(lines), said.err) == (3, "")


def test_quiet_is_quiet(experiment, terminal, capsys, clock):
    screen, shown = terminal(), Progress(experiment(quiet=True, n_epochs=100))
    train(shown, clock, 1, 10)
    shown.after_round(row(shown.run, 1, 1000))
    assert (capsys.readouterr().out, screen.getvalue()) == ("", "")


@pytest.mark.slow
def test_the_bar_has_all_that_matters_in_80_columns(experiment, terminal):
    run, screen = experiment(participation=1.0, n_epochs=12), terminal()
    train_shown(run)
    assert screen.getvalue().count(run.name) == 1
    lines = [line for line in re.split("[\r\n]+", screen.getvalue()) if line.startswith("round ")]
    assert max(map(len, lines)) <= 80
    assert any(
        re.match(r"round \d+/12 client \d+/20 \|.* s to go, test acc 0\.\d{4}, \d+\.\d MB", line) for line in lines
    )
    assert re.match(r"round 12/12 \|[█#]+\| test acc", lines[-1])


@pytest.mark.parametrize("dirichlet", ["iid", 0.3])
@pytest.mark.parametrize("threads", [1, 4])
def test_the_first_client_tells_what_the_run_will_cost(experiment, clock, capsys, dirichlet, threads):
    """Each sample takes 0.5 s of training, a third of that in an evaluation; `threads` clients are at work at once."""
    run = experiment(n_epochs=40, n_client_epochs=2, dirichlet=dirichlet, eval_every=2)
    run.clients.threads.n = threads
    shown = Progress(run)
    train(shown, clock, 1, 0.5, clients=1)
    training = 40 * 0.5 * 2 * len(run.splits.train) / 5  # a fifth of the clients a round
    evaluation = 20 * 0.5 / 3 * (len(run.splits.val) + len(run.splits.test))
    cohort = run.server.begin(1)
    ahead = run.clients.load_of(cohort.ids[0]) / sum(run.clients.load_of(number) for number in cohort.ids[:threads])
    assert shown.per_round * 40 == pytest.approx((training + evaluation) * ahead)
    train(shown, clock, 1, 0.5)
    shown.after_round(row(run))
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"about \d+ (h|min) to go on this machine, [\d.]+ clients a minute: fewer rounds \(--n_epochs\) or steps "
        r"\(--local_steps\) take less\n",
        said,
    )


def test_a_run_of_minutes_is_worth_no_words(experiment, clock, capsys):
    shown = Progress(experiment(n_epochs=10))
    train(shown, clock, 1, 1e-3, clients=1)  # a first client says little before it has worked for some seconds
    assert not shown.told
    train(shown, clock, 1, 0.1)
    assert shown.told
    assert capsys.readouterr().err == ""


def test_a_long_round_is_told_of_by_client(experiment, clock, capsys):
    run = experiment(n_epochs=3)
    shown = Progress(run)
    train(shown, clock, 1, 0.7)  # 45 s a client
    lines = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["round 1/3 client 2/4", "round 1/3 client 4/4"]
    shown.after_round(row(run))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("1.00 s training + 1.00 s evaluation, 6 min to go")  # two rounds as long as the first


def test_a_hint_at_eval_every_where_evaluation_takes_long(experiment, clock, capsys):
    run = experiment(n_epochs=50)
    shown = Progress(run)
    for seconds in (1, 10, 60, 60):
        shown.after_round(row(run, 10, seconds))
    assert capsys.readouterr().err == (
        "evaluation takes 70% of the time: a larger --eval_every, now 1, makes it less\n"
    )


def test_durations():
    assert [duration(s) for s in (0.4, 119, 120, 7000, 7200, 3 * 86400, float("nan"))] == [
        *("0 s", "119 s", "2 min", "117 min", "2 h", "3 days", "unknown"),
    ]
