"""Clients that train at once: the same results as one after the other, in the same order, and clean ends."""

import itertools
import threading
import time

import pytest
import torch

from fedmerge.client_update import Update
from fedmerge.errors import InputError
from fedmerge.merging.aggregate import Sums
from fedmerge.networks.flat_model import Layout
from fedmerge.registry import ALGORITHMS, LOCAL_METHODS
from fedmerge.simulation import evaluation, rounds
from fedmerge.simulation.client_threads import Workers, how_many
from fedmerge.simulation.sampling import sample_clients

SHORT = {"batch_size": 32, "local_steps": 2, "participation": 0.25, "dirichlet": 0.5}
TIMES = ("train_seconds", "eval_seconds")


@pytest.fixture
def one_thread():
    """torch on one thread, so that a client's sums are the same whatever else goes on."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assert_alike(one, other):
    """Assert that two Experiments went through the same rounds, to the last bit."""
    for name, model in (("theta", lambda exp: exp.theta), ("downlink", lambda exp: exp.downlink.model)):
        assert torch.equal(model(one), model(other)), name
    assert torch.equal(evaluation.served(one), evaluation.served(other))
    for keeps in ("algorithm", "local"):
        a, b = (exp.algorithm if keeps == "algorithm" else exp.trainer.local for exp in (one, other))
        for kind, of_client in a.held().items():
            assert of_client.keys() == b.held()[kind].keys()
            assert all(torch.equal(value, b.held()[kind][number]) for number, value in of_client.items())
    assert one.traffic == other.traffic
    for row, expected in zip(one.rows, other.rows, strict=True):
        assert {k: v for k, v in row.items() if k not in TIMES} == {k: v for k, v in expected.items() if k not in TIMES}


def train(exp, n_rounds=2):
    for round in range(1, n_rounds + 1):
        exp.rows.append(rounds.train_round(exp, round))
    return exp


CASES = [
    *({"algorithm": name} for name in sorted(set(ALGORITHMS) - {"centralised"})),
    *({"local": name} for name in sorted(LOCAL_METHODS)),
    {"algorithm": "las", "preset": "compact", "wire": "real"},
    {"algorithm": "las", "localiser": "learned", "graft_epochs": 1},
    {"downlink": "individual", "down_sparsity": 0.1, "shared_init": False},
    {"attack": "noise", "attackers": 0.3, "dropout": 0.3},
]


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_clients_side_by_side_make_what_they_make_one_after_the_other(experiment, one_thread, settings):
    small = {"n_verts": 2, "soup_epochs": 1} if "lss" in settings.values() or "soups" in settings.values() else {}
    if settings.get("algorithm") == "diwa":
        small = {"n_verts": 2, "soup_epochs": 1}
    alone, beside = (
        train(experiment(**{**SHORT, **small, **settings}, norm="batch", min_client_samples=2, parallel_clients=n))
        for n in (1, 3)
    )
    assert (alone.workers.n, beside.workers.n) == (1, 3)
    assert_alike(beside, alone)


def test_a_client_that_diverges_is_left_out_beside_others_too(experiment, one_thread, capsys):
    both = []
    for n in (1, 3):
        exp = experiment(**SHORT, on_nan="skip", algorithm="las", residual="client", parallel_clients=n)
        update, number = exp.algorithm.local_update, sample_clients(20, 0.25, 0, 1)[2]

        def poisoned(start, client, update=update, number=number):
            sent = update(start, client)
            if client.number == number and client.round == 1:
                sent.delta[sent.mask.nonzero()[0]] = torch.nan
            return sent

        exp.algorithm.local_update = poisoned
        both.append(train(exp, 1))
        assert f"client {number}: the update is not finite: left out" in capsys.readouterr().err
        assert number not in exp.algorithm.memory.left
        assert exp.rows[0]["clients"] == 4
    assert_alike(*both)


def test_the_sum_is_that_of_those_that_count():
    """The GPU's way of leaving an update out, where no one looks at it: nothing is added, whatever it holds."""
    updates = [Update(torch.tensor([1.0, 2.0, 3.0])), Update(torch.tensor([torch.nan, torch.inf, 1.0]))]
    masks = [torch.tensor([True, False]), torch.tensor([True, True])]
    for order in itertools.permutations(range(2)):
        sums = Sums(("update", "mask", "sign"), Layout(("a",), (2,), 2, 3))
        for i in order:
            sums.add(updates[i]._replace(mask=masks[i]), 3, counts=torch.tensor(i == 0))
        means = sums.means(3)
        assert [means[name].tolist() for name in means] == [[1, 2, 3], [1, 0], [1, 1]]


def test_a_mean_needs_the_memory_of_one_update_however_many_clients(experiment):
    exp = experiment(participation=1.0, local_steps=1, parallel_clients=1)
    train(exp)
    assert len(exp.spare_rows) == 1
    assert exp.deltas is None
    many = train(experiment(participation=1.0, local_steps=1, parallel_clients=3, max_cohort_memory=1e-9))
    assert len(many.spare_rows) <= 4  # those at work, and one that is merged meanwhile


def test_a_merge_of_all_updates_must_fit(experiment):
    size = 4 * experiment().model.layout.dim * 4 / 2**30
    experiment(algorithm="median", max_cohort_memory=size * 1.01)
    with pytest.raises(InputError, match=r"^--algorithm median needs 4 updates of a round at once, 0\.00 GiB"):
        experiment(algorithm="median", max_cohort_memory=size * 0.99)


# --------------------------------------------------------------------------------------------------------------------
# Tasks


@pytest.fixture
def workers(experiment):
    def make(n):
        return Workers(experiment(parallel_clients=1).trainer, n)

    return make


def sleeper(log, i, seconds):
    def task(trainer):
        log.append((i, trainer))
        time.sleep(seconds)
        return i

    return task


@pytest.mark.parametrize("n", [1, 3])
def test_results_come_in_order_and_two_never_share_a_model(workers, n):
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

    assert list(workers(n).run(map(task_of, range(9)))) == list(range(9))
    assert sorted(log) == list(range(9))
    assert max(most) == n


@pytest.mark.parametrize(("n", "ahead", "most"), [(1, None, 1), (2, None, 2), (2, 5, 5)])
def test_no_more_is_begun_than_may_wait(workers, n, ahead, most):
    """The first task takes long, so that all others which may begin do so before anything is yielded."""
    log = []
    tasks = (sleeper(log, i, 0.3 if i == 0 else 0) for i in range(9))
    results = workers(n).run(tasks, ahead)
    assert next(results) == 0
    assert len(log) == most
    assert list(results) == list(range(1, 9))


@pytest.mark.parametrize("ahead", [None, 1000])
@pytest.mark.parametrize("n", [1, 2])
def test_a_pause_lets_those_that_have_begun_through(workers, n, ahead):
    begun, pool = [], workers(n)
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
def test_an_error_comes_out_and_nothing_goes_on_behind_it(workers, n):
    log, pool = [], workers(n)

    def fails(trainer):
        raise FloatingPointError("diverged")

    with pytest.raises(FloatingPointError, match="diverged"):
        list(pool.run(iter([sleeper(log, 0, 0), fails, *(sleeper(log, i, 0.05) for i in range(2, 9))])))
    count = len(log)
    time.sleep(0.2)
    assert len(log) == count < 6
    assert list(pool.run(iter([sleeper(log, 0, 0)] * 4))) == [0] * 4  # and it works on
    assert len(pool.idle) == n


def test_torchs_threads_are_shared_out(workers):
    """Four threads, two at once: two each, on whatever thread work is done meanwhile; four again when it is through."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        pool, seen = workers(2), []

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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_streams_on_a_gpu_make_what_one_makes(experiment):
    settings = {**SHORT, "algorithm": "las", "residual": "client", "device": "cuda", "deterministic": True}
    alone, beside = (train(experiment(**settings, parallel_clients=n), 3) for n in (1, 3))
    assert torch.allclose(beside.theta, alone.theta, atol=1e-5)
