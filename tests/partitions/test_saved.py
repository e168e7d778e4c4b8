"""Splits in files."""

import json

import pytest
import torch

from fedmerge import partitions
from fedmerge.errors import InputError

LABELS = torch.arange(10).repeat(20)


def write(file, **content):
    """Write a split file of LABELS, of which some content is another; None takes it out."""
    whole = {"clients": [list(range(i, 200, 5)) for i in range(5)], "labels_sha256": partitions.labels_hash(LABELS)}
    file.write_text(json.dumps({name: value for name, value in (whole | content).items() if value is not None}))


def test_a_partition_file_gives_the_same_split_back_and_no_other(tmp_path):
    file = tmp_path / "split.json"
    parts = partitions.partition(LABELS, 5, "dirichlet:0.5", 0)
    partitions.save_partition(file, LABELS, parts, {})
    again = partitions.load_partition(file, LABELS, 5)
    assert partitions.partition_hash(again) == partitions.partition_hash(parts)
    other = partitions.partition(LABELS, 5, "dirichlet:0.5", 1)
    assert partitions.partition_hash(again) != partitions.partition_hash(other)
    assert partitions.partition_hash([*parts[:4], parts[4].flip(0)]) != partitions.partition_hash(parts)
    assert partitions.partition_file_hash(file) == partitions.partition_hash(parts)
    with pytest.raises(InputError, match="into 5 clients, not --n_clients 6"):
        partitions.load_partition(file, LABELS, 6)
    with pytest.raises(InputError, match="other training data"):
        partitions.load_partition(file, LABELS.flip(0), 5)
    with pytest.raises(InputError, match="--min_client_samples 150"):
        partitions.load_partition(file, LABELS, 5, min_samples=150)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"clients": [[0, 1], [1, 2]]}, "position 1 is in it 2 times"),
        ({"clients": [[0, 1], [1, 2]], "unused": True}, "position 1 is in it 2 times"),
        ({"clients": [[0], [200]], "unused": True}, "position 200 is none of the 200 training samples, 0 to 199"),
        ({"clients": [[0], [-1]], "unused": True}, "position -1 is none of"),
        ({"clients": [[], []], "unused": True}, "no client has a sample"),
        ({"clients": [[0], [1, 2]]}, '197 of the 200 training samples belong to no client: write "unused": true'),
        ({"clients": [[0], [1, 2]], "unused": False}, "197 of the 200"),
        ({"clients": [[0], []], "unused": True}, "fewer samples than --min_client_samples 1 .0 allows any"),
        ({"clients": [[0], [1]], "labels_sha256": None}, "other training data"),
    ],
)
def test_a_file_that_does_not_share_out_the_samples_is_refused_and_says_where(tmp_path, change, why):
    write(tmp_path / "split.json", **change)
    with pytest.raises(InputError, match=why):
        partitions.load_partition(tmp_path / "split.json", LABELS, 2)


@pytest.mark.parametrize(
    "change",
    [
        *(
            {"clients": c}
            for c in (3, [], ["a"], [["a"]], [[1e30]], [[0.5]], [[2**70]], [0, 1], [[[0]]], [[0], [True]])
        ),
        *({"clients": c} for c in (None, {"0": [1]}, [None])),
        *({name: 1} for name in ("name", "unused", "drawn_by", "made_for", "labels_sha256")),
    ],
    ids=str,
)
def test_what_is_no_partition_file_is_refused(tmp_path, change):
    write(tmp_path / "split.json", **change)
    with pytest.raises(InputError, match="not a partition file"):
        partitions.load_partition(tmp_path / "split.json", LABELS, 5)
    for text in ("", "[]", "{}", "[" * 100_000):
        (tmp_path / "split.json").write_text(text)
        with pytest.raises(InputError):
            partitions.load_partition(tmp_path / "split.json", LABELS, 5)


def test_samples_may_be_left_out_and_clients_empty_if_that_is_meant(tmp_path):
    write(tmp_path / "split.json", clients=[[5, 3], [], [7]], unused=True)
    parts = partitions.load_partition(tmp_path / "split.json", LABELS, 3, min_samples=0)
    assert [part.tolist() for part in parts] == [[5, 3], [], [7]]
    table = partitions.histograms(LABELS, parts, 10)
    assert table.sum(1).tolist() == [2, 0, 1]
    assert [row.nonzero().flatten().tolist() for row in table] == [[3, 5], [], [7]]
    words = partitions.described(table, 200)
    assert words.startswith("3 clients, samples 1/1/2, classes 1/1/2 (min/median/max)")
    assert "1 clients without samples" in words
    assert "197 of 200 samples unused" in words


def test_a_stamp_binds_a_split_to_its_labels_once(tmp_path):
    file = tmp_path / "split.json"
    write(file, labels_sha256=None, name="mine", note="kept")
    before = json.loads(file.read_text())
    with pytest.raises(InputError, match="position 100 is none of the 100"):
        partitions.stamp_partition(file, LABELS[:100], {"seed": 0})
    assert json.loads(file.read_text()) == before
    partitions.stamp_partition(file, LABELS, {"seed": 0})
    stamped = json.loads(file.read_text())
    assert stamped == before | {"made_for": {"seed": 0}, "labels_sha256": partitions.labels_hash(LABELS)}
    partitions.load_partition(file, LABELS, 5)
    partitions.stamp_partition(file, LABELS, {"seed": 0})
    with pytest.raises(InputError, match=r"belongs to other labels already \(--seed 0\)"):
        partitions.stamp_partition(file, LABELS.flip(0), {"seed": 1})
    assert json.loads(file.read_text()) == stamped
