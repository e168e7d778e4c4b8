"""When a run is saved, and how one ends that was asked to."""

import os
import signal
from types import SimpleNamespace

import pytest

from fedmerge.checkpoint import policy
from fedmerge.checkpoint.policy import CheckpointPolicy, Interrupted, StopSignal
from fedmerge.checkpoint.store import Checkpoints


class Work:
    """What is saved: so many rounds of a hundred are done."""

    n_done, n_rounds = 0, 100

    def state_dict(self):
        return {"done": self.n_done}

    def place(self):
        return f"round {self.n_done}"


@pytest.fixture
def clock(monkeypatch):
    """A list whose only element is the time, in seconds."""
    now = [0.0]
    monkeypatch.setattr(policy.time, "monotonic", lambda: now[0])
    return now


def saver_of(tmp_path, clock, monkeypatch, every=None):
    """Return a CheckpointPolicy of some Work whose checkpoints take 0.5 s each, and the list of those."""
    kept, saved = Checkpoints(tmp_path, "x"), []

    def save(state):
        saved.append(state["done"])
        clock[0] += 0.5

    monkeypatch.setattr(kept, "save", save)
    saver = CheckpointPolicy(kept, every)
    saver.run = Work()
    return saver, saved


def test_checkpoints_take_about_a_hundredth_of_the_time(monkeypatch, tmp_path, clock):
    """By a clock of ours: saving takes 0.5 s, a round 7 s."""
    saver, saved = saver_of(tmp_path, clock, monkeypatch)
    for done in range(1, 41):
        clock[0] += 7
        saver.run.n_done = done
        saver.after_round()
    # 21 s at first, for a guess of 0.1 s; then as soon as half a second more is below 0.7 % of the time: 143 s, 214 s
    assert saved == [3, 21, 31]
    clock[0] += 601
    saver.after_client()  # in the middle of a long round
    assert len(saved) == 4


def test_by_rounds_if_asked_and_not_after_the_last(monkeypatch, tmp_path, clock):
    saver, saved = saver_of(tmp_path, clock, monkeypatch, every=40)
    saver.run.n_rounds = 80
    for done in range(1, 81):
        saver.run.n_done = done
        saver.after_round()
    assert saved == [40]


def test_a_run_that_was_asked_to_end_is_saved_first(monkeypatch, tmp_path, clock):
    saver, saved = saver_of(tmp_path, clock, monkeypatch)
    saver.run.n_done = 5
    saver.after_client()
    assert not saver.due()
    saver.stop.number = signal.SIGUSR1
    assert saver.due()
    with pytest.raises(Interrupted, match="stopped by SIGUSR1 after round 5; the same command goes on"):
        saver.after_client()
    assert saved == [5]
    assert saver.stop.ending


def test_a_signal_that_comes_just_after_nothing_was_due_ends_no_run_unsaved(monkeypatch, tmp_path, clock):
    saver, saved = saver_of(tmp_path, clock, monkeypatch)
    due = saver.due

    def as_it_is_asked():
        answer, saver.stop.number = due(), signal.SIGINT
        return answer

    monkeypatch.setattr(saver, "due", as_it_is_asked)
    saver.after_client()
    assert saved == []
    saver.run.n_done = 1
    with pytest.raises(Interrupted, match="after round 1"):
        saver.after_client()
    assert saved == [1]


def test_the_first_signal_tells_how_long_it_takes(clock, capsys):
    stop, cohort = StopSignal(), SimpleNamespace(done=[])
    stop.begin(cohort, [3, 1])
    for seconds in (6.2, 50):  # the first is the longest: the second began beside it
        clock[0] += seconds
        cohort.done.append(seconds)
        stop.after_client(cohort)
    with stop.listening():
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.number == signal.SIGINT
    said = capsys.readouterr().err
    assert said == "SIGINT: ends and saves after the client at hand, up to about 7 s; again ends at once\n"
