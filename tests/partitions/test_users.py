"""Clients that are users whom the data name."""

import json

import numpy as np
import pytest
import torch
from conftest import QUICK
from PIL import Image

import fedalg
from fedmerge import partitions
from fedmerge.config.parser import parse_args
from fedmerge.config.resolve import resolve
from fedmerge.errors import InputError
from fedmerge.simulation.experiment import load_splits, prepare


@pytest.fixture
def letters(tmp_path):
    """data/letters/{ada,bob,cleo}/{a,b}: 10, 15 and 20 small images of each class."""
    rng = np.random.default_rng(0)
    for user, n in (("ada", 10), ("bob", 15), ("cleo", 20)):
        for letter in "ab":
            folder = tmp_path / "data" / "letters" / user / letter
            folder.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(rng.integers(256, size=(16, 16, 3), dtype="u1")).save(folder / f"{i}.png")
    return tmp_path


def settings(letters, **more):
    return {**QUICK, "dataset": "letters", "data_root": str(letters / "data"), "partition": "users"} | more


def test_each_client_is_one_user(letters):
    run = prepare(resolve(settings(letters, n_clients=3, image_size=16, device="cpu")))
    domains = run.splits.train.domains
    assert [set(domains[part].tolist()) for part in run.clients.parts] == [{0}, {1}, {2}]
    assert torch.equal(torch.cat(run.clients.parts).sort().values, torch.arange(len(domains)))
    assert sum(map(len, run.clients.parts)) == 72 - 7  # a fifth of each class of each user is for testing, then a tenth


def test_a_run_on_users_says_so(letters, monkeypatch):
    monkeypatch.chdir(letters)
    words = settings(letters, n_clients=3, image_size=16, device="cpu", participation=1, n_epochs=1)
    fedalg.main(parse_args([w for name, value in words.items() for w in (f"--{name}", str(value))]))
    (path,) = (letters / "metrics").glob("*.json")
    record = json.loads(path.read_text())
    assert path.name.startswith("fedavg_letters_users_0")
    assert [sum(row) for row in record["partition"]["histograms"]] == [
        len(part) for part in prepare(resolve(words)).clients.parts
    ]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"n_clients": 20}, "the data are of 3 users: --n_clients 3"),
        ({"n_clients": 3, "shift": "feature"}, "leave out --shift feature"),
        ({"n_clients": 20, "dataset": "DIGITS"}, "nothing tells whose the images of DIGITS are"),
        (
            {"n_clients": 3, "min_client_samples": 20},
            "natural users leaves about 1 of 3 clients with fewer",
        ),
    ],
)
def test_what_is_no_split_by_users_is_refused(letters, more, said):
    with pytest.raises(InputError, match=said):
        prepare(resolve(settings(letters, **more)))


def test_a_partition_of_domains_gets_their_positions():
    assert [part.tolist() for part in partitions.partition(torch.tensor([1, 0, 1, 2]), 3, "users", 0)] == [
        [1],
        [0, 2],
        [3],
    ]


def test_a_user_of_whom_no_image_is_left_for_training_is_named(letters):
    folder = letters / "data" / "letters" / "dora" / "a"
    folder.mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(folder / "0.png")
    args = resolve(settings(letters, n_clients=4))
    splits = load_splits(args)
    own = splits.train.domains != 3
    with pytest.raises(InputError, match="--partition users: no image of dora is for training"):
        partitions.split_into_clients(args, splits.train[own], domains=splits.domains)
