"""Splits by their laws, and histograms looked up in the images themselves."""

import json
from contextlib import suppress

import pytest
import torch
from conftest import keys
from hypothesis import given, settings
from hypothesis import strategies as st

import data
import partitions
from utils import InputError


@given(
    labels=st.lists(st.integers(0, 4), min_size=30, max_size=200),
    n_clients=st.integers(1, 8),
    dirichlet=st.sampled_from(["iid", 0.05, 0.5, 100.0]),
    seed=st.integers(0, 1000),
    min_samples=st.integers(1, 3),
)
@settings(max_examples=60)
def test_every_sample_belongs_to_exactly_one_client(labels, n_clients, dirichlet, seed, min_samples):
    labels = torch.tensor(labels)
    if dirichlet in (0.05, 0.5):  # so skewed a split may fail on so few samples, and nothing else may
        with suppress(InputError):
            partitions.partition(labels, n_clients, dirichlet, seed, min_samples)
        min_samples = 0
    parts = partitions.partition(labels, n_clients, dirichlet, seed, min_samples)
    assert len(parts) == n_clients
    assert min(map(len, parts)) >= min_samples
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(len(labels)))
    again = partitions.partition(labels, n_clients, dirichlet, seed, min_samples)
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))


def test_histograms_are_those_of_the_images_a_client_really_trains_on(experiment):
    """Trap: positions within a subset are not positions within the whole. Here the images themselves are looked up."""
    exp = experiment(dirichlet=0.3)
    truth = {image: label for label, image in keys(data.load_dataset("DIGITS", ".", 0).train)}
    table = partitions.histograms(exp.splits.train.labels, exp.parts, 10)
    for number, part in enumerate(exp.parts):
        counts = [0] * 10
        for x, y in zip(exp.splits.train.images[part], exp.splits.train.labels[part], strict=True):
            assert truth[x.numpy().tobytes()] == y
            counts[y] += 1
        assert counts == table[number].tolist()
    assert table.sum() == len(exp.splits.train)


def test_a_small_dirichlet_is_skewed_and_a_large_one_is_not():
    labels = torch.arange(10).repeat(500)

    def classes_held(alpha):
        table = partitions.histograms(labels, partitions.partition(labels, 20, alpha, 0), 10)
        return (table > 0.02 * table.sum(1, keepdim=True)).sum(1).float().mean()

    assert classes_held(0.1) < 5
    assert classes_held(100.0) == 10
    assert classes_held("iid") == 10


def test_what_cannot_be_split_ends_soon_and_says_what_to_change():
    labels = torch.arange(10).repeat(20)
    with pytest.raises(InputError, match="lower --n_clients or --min_client_samples"):
        partitions.partition(labels, 201, "iid", 0)
    with pytest.raises(InputError, match="of 100 clients with fewer than --min_client_samples 2"):
        partitions.partition(labels, 100, 0.01, 0, min_samples=2)


def test_a_partition_file_gives_the_same_split_back_and_no_other(tmp_path):
    labels, file = torch.arange(10).repeat(20), tmp_path / "split.json"
    parts = partitions.partition(labels, 5, 0.5, 0)
    partitions.save_partition(file, labels, parts, {})
    again = partitions.load_partition(file, labels, 5)
    assert partitions.partition_hash(again) == partitions.partition_hash(parts)
    assert partitions.partition_hash(again) != partitions.partition_hash(partitions.partition(labels, 5, 0.5, 1))
    assert partitions.partition_hash([*parts[:4], parts[4].flip(0)]) != partitions.partition_hash(parts)
    assert partitions.partition_file_hash(file) == partitions.partition_hash(parts)
    with pytest.raises(InputError, match="into 5 clients, not --n_clients 6"):
        partitions.load_partition(file, labels, 6)
    with pytest.raises(InputError, match="other training data"):
        partitions.load_partition(file, labels.flip(0), 5)
    with pytest.raises(InputError, match="--min_client_samples 150"):
        partitions.load_partition(file, labels, 5, min_samples=150)
    partitions.save_partition(file, labels, [parts[0], *parts[:4]], {})
    with pytest.raises(InputError, match="exactly once"):
        partitions.load_partition(file, labels, 5)
    good = json.loads(file.read_text())
    for clients in (3, [], ["a"], [["a"]], [[1e30]], [[0.5]], [[2**70]], [0, 1], [[[0]]], [[0], [True]], None):
        file.write_text(json.dumps(good | {"clients": clients}))
        with pytest.raises(InputError, match="not a partition file"):
            partitions.load_partition(file, labels, 5)
    file.write_text(json.dumps({"clients": good["clients"]}))  # a minimal one, made by hand
    with pytest.raises(InputError, match="exactly once"):
        partitions.load_partition(file, labels, 5)
    for text in ("", "[]", "{}", "[" * 100_000):
        file.write_text(text)
        with pytest.raises(InputError):
            partitions.load_partition(file, labels, 5)


@pytest.mark.parametrize("dirichlet", ["iid", 0.5])
def test_every_client_has_one_domain_and_the_clients_of_a_domain_share_it(dirichlet):
    rng = torch.Generator().manual_seed(0)
    labels, domains = torch.randint(4, (900,), generator=rng), torch.randint(3, (900,), generator=rng)
    parts = partitions.partition_by_domain(labels, domains, 6, dirichlet, seed=1, min_samples=5)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(900))
    assert [domains[part].unique().tolist() for part in parts] == [[0], [1], [2], [0], [1], [2]]
    assert min(map(len, parts)) >= 5
    again = partitions.partition_by_domain(labels, domains, 6, dirichlet, seed=1, min_samples=5)
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))
    with pytest.raises(InputError, match="4 is no multiple of the 3 domains"):
        partitions.partition_by_domain(labels, domains, 4, dirichlet, seed=1)
