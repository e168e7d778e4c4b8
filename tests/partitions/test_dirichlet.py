"""Dirichlet splits: the draws of published runs, what can succeed, and how soon the rest is refused."""

import re

import numpy as np
import pytest
import torch

from fedmerge import partitions
from fedmerge.errors import InputError
from fedmerge.partitions import dirichlet, enough


def random_labels(n, n_classes):
    return torch.from_numpy(np.random.default_rng(0).integers(0, n_classes, n))


def split(labels, n_clients, alpha, seed, *more):
    """The parts at the concentration `alpha`, or "iid"."""
    how = alpha if alpha == "iid" else f"dirichlet:{alpha}"
    return partitions.partition(labels, n_clients, how, seed, *more)


# Settings (samples, classes, clients, alpha, seed, least samples) and the hash of the split of the first version.
PINNED = {
    (1294, 10, 20, 0.1, 0, 1): "0b4bb83ee7cbaf03",
    (1294, 10, 20, 0.1, 1, 10): "88b9831a98190e04",
    (1294, 10, 20, 0.1, 2, 20): "b26273ec28701a63",  # after some hundred draws
    (1294, 10, 20, 0.05, 3, 1): "a5e828ce28f6ee7e",
    (1294, 10, 50, 0.3, 4, 2): "e2d714edc70201ff",
    (5000, 100, 100, 0.1, 0, 1): "b8b1e5b092f61f8c",
    (45000, 10, 100, 0.1, 0, 1): "7cbe823de4ff12ae",
    (300, 3, 10, 1000.0, 0, 1): "032abb5efdffce8e",
    (1294, 10, 20, "iid", 5, 1): "49392bbce7d775e4",
    (1294, 10, 20, 1e-6, 5, 0): "fa52ac80597845b2",  # with clients without samples
    (1294, 10, 7, 0.5, 5, 100): "75c9dfe851161ac9",
}


@pytest.mark.parametrize("setting", PINNED, ids=str)
def test_splits_are_those_that_published_runs_were_made_with(setting):
    n, n_classes, *how = setting
    parts = split(random_labels(n, n_classes), *how)
    assert partitions.partition_hash(parts)[:16] == PINNED[setting]


@pytest.mark.parametrize(
    ("n", "n_classes", "n_clients", "alpha", "least"),
    [
        (1294, 10, 20, 0.1, 1),
        (1294, 10, 20, 0.1, 20),
        (1294, 10, 50, 0.3, 5),
        (2000, 4, 100, 1.0, 3),
        (500, 5, 2, 0.3, 90),
    ],
)
def test_how_many_clients_are_left_short_is_foretold(n, n_classes, n_clients, alpha, least):
    classes = enough.by_class(random_labels(n, n_classes))
    draws = [dirichlet.dirichlet(classes, n_clients, alpha, np.random.default_rng(seed))[1] for seed in range(400)]
    short = np.array([(enough.sizes(owners, n_clients) < least).sum() for owners in draws])
    error = 4 * short.std() / 20 + 0.01
    assert abs(dirichlet.expected_short(classes, n_clients, alpha, least) - short.mean()) < error


@pytest.fixture
def counted(monkeypatch):
    """A list that grows by the work of each draw: samples shuffled and shares drawn."""
    work, draw = [], dirichlet.dirichlet

    def counting(classes, n_clients, *more):
        work.append(sum(map(len, classes)) + len(classes) * n_clients)
        return draw(classes, n_clients, *more)

    counting.registered = draw.registered
    monkeypatch.setattr(dirichlet, "dirichlet", counting)
    return work


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "n_classes", "n_clients", "alpha", "least"),
    [
        (20_000, 10, 10_000, 1.0, 1),
        (20_000, 10, 1_000, 0.1, 1),
        (1294, 10, 500, 0.01, 1),
        (1294, 10, 20, 0.1, 60),
        (2_000, 40, 200, 1000.0, 8),  # cuts of all classes fall together
        (45_000, 10, 20, 0.001, 100),
    ],
)
def test_what_cannot_succeed_is_refused_soon_with_what_would(counted, n, n_classes, n_clients, alpha, least):
    labels = random_labels(n, n_classes)
    with pytest.raises(InputError, match=f"of {n_clients} clients with fewer than") as caught:
        split(labels, n_clients, alpha, 0, least)
    assert sum(counted) < 2 * enough.WORK
    fewer, level = re.search(r"--n_clients to (\d+), raise --dirichlet to (\S+),", str(caught.value)).groups()
    for seed in range(3):
        assert len(split(labels, int(fewer), alpha, seed, least)) == int(fewer)
        split(labels, n_clients, level, seed, least)
    assert min(map(len, split(labels, n_clients, alpha, 0, 0))) < least


def test_the_hopeless_is_not_tried_a_thousand_times(counted):
    with pytest.raises(InputError, match=r"leaves about 2\d\d of 500 clients .*\(1 drawn\)"):
        split(random_labels(45_000, 10), 500, 0.01, 0)
    assert not enough.is_hopeless(short=10, n=1, most=1000)  # one bad draw says little
    assert enough.is_hopeless(short=10 * 20, n=10, most=1000)
    assert not enough.is_hopeless(short=100 * 6, n=100, most=1000)  # each draw succeeds with a chance of 1 in 400


def test_a_hundred_thousand_clients_are_split_or_refused(counted):
    labels = random_labels(200_000, 10)
    with pytest.raises(InputError, match="of 100000 clients"):
        split(labels, 100_000, 1.0, 0)
    assert sum(counted) < enough.WORK
    parts = split(labels, 100_000, 1.0, 0, 0)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(200_000))


def test_of_a_domain_the_advice_counts_all_clients():
    labels, domains = random_labels(1000, 10), torch.arange(2).repeat(500)
    with pytest.raises(InputError, match=r"domain 1 of 2: a split with Dirichlet.* of 100 clients") as caught:
        partitions.partition_by_domain(labels, domains, 200, "dirichlet:0.01", seed=0)
    fewer = int(re.search(r"--n_clients to (\d+)", str(caught.value))[1])
    assert fewer % 2 == 0
    partitions.partition_by_domain(labels, domains, fewer, "dirichlet:0.01", seed=0)
