"""Threads that train clients side by side: in order, no more than may wait, and with clean ends."""

import itertools
import threading
import time

import pytest
import torch
from conftest import assert_alike, train_rounds

from fedmerge.client_update import ClientUpdate
from fedmerge.errors import InputError
from fedmerge.merging import WeightedSums, find_statistics
from fedmerge.networks.flat_model import Layout
from fedmerge.registry import MERGING_RULES
from fedmerge.simulation.client_threads import ClientThreads, how_many
from fedmerge.simulation.sampling import sample_clients

SHORT = {"batch_size": 32, "local_steps": 2, "participation": 0.25, "dirichlet": 0.5}


@pytest.mark.usefixtures("one_thread")
def test_a_client_that_diverges_is_left_out_beside_others_too(experiment, capsys):
    both = []
    for n in (1, 3):
        run = experiment(**SHORT, on_nan="skip", algorithm="las", residual="client", parallel_clients=n)
        compress, client_id = run.server.compressor.compress, sample_clients(20, 0.25, 0, 1)[2]

        def poisoned(delta, start, client, compress=compress, client_id=client_id):
            sent, mask = compress(delta, start, client)
            if client.id == client_id and client.round == 1:
                sent[mask.nonzero()[0]] = torch.nan
            return sent, mask

        run.server.compressor.compress = poisoned
        both.append(train_rounds(run, 1))
        assert f"client {client_id}: the update is not finite: left out" in capsys.readouterr().err
        assert client_id not in run.server.compressor.feedback.left
        assert run.history.rows[0]["clients"] == 4
    assert_alike(*both)


def test_the_sum_is_that_of_those_that_count():
    """The GPU's way of leaving an update out, where no one looks at it: nothing is added, whatever it holds."""
    deltas = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([torch.nan, torch.inf, 1.0])]
    masks = [torch.tensor([True, False]), torch.tensor([True, True])]
    names = (*MERGING_RULES["stitch"].registered["needs"], *MERGING_RULES["sign"].registered["needs"], "control")
    for order in itertools.permutations(range(2)):
        sums = WeightedSums(find_statistics(names, uploads=("control",)), Layout(("a",), (2,), 2, 3))
        for i in order:
            update = ClientUpdate(deltas[i], masks[i], control=10 * deltas[i][:2])
            sums.add(update, 3, counts=torch.tensor(i == 0))
        means = sums.means(3, n_clients=1)
        assert {name: mean.tolist() for name, mean in means.items()} == {
            "update": [1, 2, 3],
            "mask": [1, 0],
            "sign": [1, 1],
            "control": [10, 20],
        }


def test_a_mean_needs_the_memory_of_one_update_however_many_clients(experiment):
    run = experiment(participation=1.0, local_steps=1, parallel_clients=1)
    train_rounds(run)
    assert len(run.clients.spare_rows) == 1
    assert run.server.sample(3).rows is None
    many = train_rounds(experiment(participation=1.0, local_steps=1, parallel_clients=3, max_cohort_memory=1e-9))
    assert len(many.clients.spare_rows) <= 4  # those at work, and one that is merged meanwhile


def test_a_merge_of_all_updates_must_fit(experiment):
    size = 4 * experiment().model.layout.dim * 4 / 2**30
    experiment(algorithm="median", max_cohort_memory=size * 1.01)
    with pytest.raises(InputError, match=r"^--merge median needs 4 updates of a round at once, 0\.00 GiB"):
        experiment(algorithm="median", max_cohort_memory=size * 0.99)


# --------------------------------------------------------------------------------------------------------------------
# Tasks


@pytest.fixture
def threads(experiment):
    def make(n):
        return ClientThreads(experiment(parallel_clients=1).clients.trainer, n)

    return make


def sleeper(log, i, seconds):
    def task(trainer):
        log.append((i, trainer))
        time.sleep(seconds)
        return i

    return task


@pytest.mark.parametrize("n", [1, 3])
def test_results_come_in_order_and_two_never_share_a_model(threads, n):
    log, at_work, most = [], set(), []

    def task_of(i):
        def task(trainer):
            assert id(trainer.model) not in at_work
            at_work.add(id(trainer.model))
            most.append(len(at_work))
            time.sleep(0.02 * (i % 3))
            at_work.discard(id(trainer.model))
            log.append(i)
            return i

        return task

    assert list(threads(n).run(map(task_of, range(9)))) == list(range(9))
    assert sorted(log) == list(range(9))
    assert max(most) == n


@pytest.mark.parametrize(("n", "ahead", "most"), [(1, None, 1), (2, None, 2), (2, 5, 5)])
def test_no_more_is_begun_than_may_wait(threads, n, ahead, most):
    """The first task takes long, so that all others which may begin do so before anything is yielded."""
    log = []
    tasks = (sleeper(log, i, 0.3 if i == 0 else 0) for i in range(9))
    results = threads(n).run(tasks, ahead)
    assert next(results) == 0
    assert len(log) == most
    assert list(results) == list(range(1, 9))


@pytest.mark.parametrize("ahead", [None, 1000])
@pytest.mark.parametrize("n", [1, 2])
def test_a_pause_lets_those_that_have_begun_through(threads, n, ahead):
    begun, pool = [], threads(n)
    tasks = (sleeper(begun, i, 0.01) for i in range(40))
    asked = threading.Event()
    first = []
    for result in pool.run(tasks, ahead, asked.is_set):
        first.append(result)
        asked.set()
    assert first == [i for i, _ in sorted(begun, key=lambda entry: entry[0])]
    assert len(first) < 20  # about n + 1, on a machine that does nothing else
    assert first + list(pool.run(tasks)) == list(range(40))


@pytest.mark.parametrize("n", [1, 3])
def test_an_error_comes_out_and_nothing_goes_on_behind_it(threads, n):
    log, pool = [], threads(n)

    def fails(trainer):
        raise FloatingPointError("diverged")

    with pytest.raises(FloatingPointError, match="diverged"):
        list(pool.run(iter([sleeper(log, 0, 0), fails, *(sleeper(log, i, 0.05) for i in range(2, 9))])))
    count = len(log)
    time.sleep(0.2)
    assert len(log) == count < 6
    assert list(pool.run(iter([sleeper(log, 0, 0)] * 4))) == [0] * 4  # and it works on
    assert len(pool.idle) == n


def test_torchs_threads_are_shared_out(threads):
    """Four threads, two at once: two each, on whatever thread work is done meanwhile; four again when it is through."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        pool, seen = threads(2), []

        def task(trainer):
            torch.ones(10) + 1
            seen.append(torch.get_num_threads())

        for _ in range(2):
            for _ in pool.run(iter([task] * 4)):
                seen.append(torch.get_num_threads())
            assert torch.get_num_threads() == 4
        assert set(seen) == {2}
        assert len(seen) == 16
    finally:
        torch.set_num_threads(before)


def test_how_many_clients_train_at_once():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert [how_many(wanted, cpu, 10) for wanted in ("auto", 1, 5, 99)] == [3, 1, 5, 10]
        assert how_many("auto", cpu, 2) == 2
        assert how_many("auto", gpu, 10) == 1
        torch.set_num_threads(64)
        assert how_many("auto", cpu, 100) == 8
    finally:
        torch.set_num_threads(before)


@pytest.mark.gpu
def test_streams_on_a_gpu_make_what_one_makes(experiment):
    settings = {**SHORT, "algorithm": "las", "residual": "client", "device": "cuda", "deterministic": True}
    try:
        alone, beside = (train_rounds(experiment(**settings, parallel_clients=n), 3) for n in (1, 3))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.allclose(beside.server.theta, alone.server.theta, atol=1e-5)
