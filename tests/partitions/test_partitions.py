"""Splits by the laws that all partitions obey, some by hand, and what a run with one is called everywhere."""

import csv
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import QUICK, keys
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made_runs import write_run

import fedalg
import plotting
from fedmerge import datasets, partitions, provenance
from fedmerge.config.parser import checked_settings, parse_args
from fedmerge.config.resolve import resolve
from fedmerge.config.run_name import run_name, settings_of
from fedmerge.config.split_files import drawn_name
from fedmerge.errors import InputError
from fedmerge.partitions import enough
from fedmerge.partitions.balanced import balanced
from fedmerge.registry import PARTITIONS, specs, use_plugins
from fedmerge.reporting import run_record, runs
from fedmerge.simulation.experiment import prepare

VALUES = {
    "count": ("1", "2", "4"),
    "positive": ("0.05", "0.5", "100.0"),
    "decay": ("0.0", "0.3"),
    "count,positive": ("1,0.5", "3,0.05", "4,100.0"),
    None: ("",),
}
OF_CLASSES = [(name, spec) for name, spec in sorted(specs("partition").items()) if "of" not in spec.more]
HOWS = [f"{name}:{value}".rstrip(":") for name, spec in OF_CLASSES for value in VALUES[spec.more.get("value")]]


def whole(parts, n):
    """Whether the parts hold every one of n positions once."""
    return torch.equal(torch.cat(parts).sort().values, torch.arange(n))


def same(a, b):
    return all(torch.equal(*pair) for pair in zip(a, b, strict=True))


# --------------------------------------------------------------------------------------------------------------------
# Laws


@pytest.mark.slow
@given(
    labels=st.lists(st.integers(0, 4), min_size=30, max_size=200),
    n_clients=st.integers(1, 8),
    how=st.sampled_from(HOWS),
    seed=st.integers(0, 1000),
    min_samples=st.integers(0, 3),
)
@settings(max_examples=300)
def test_every_sample_is_at_one_client_or_the_split_is_refused(labels, n_clients, how, seed, min_samples):
    labels = torch.tensor(labels)
    try:
        parts = partitions.partition(labels, n_clients, how, seed, min_samples)
    except InputError:
        n_classes, (kind, _, value) = len(labels.unique()), how.partition(":")
        few = kind in ("labels", "extended")
        cannot = few and not n_classes / n_clients <= int(value.partition(",")[0]) <= n_classes
        cannot = cannot or (kind == "shards" and n_clients * int(value) > len(labels))
        assert cannot or (min_samples and how != "iid")  # so few samples may not suffice
        return
    assert len(parts) == n_clients
    assert min(map(len, parts)) >= min_samples
    assert whole(parts, len(labels))
    assert same(parts, partitions.partition(labels, n_clients, how, seed, min_samples))


@pytest.mark.parametrize("how", HOWS)
def test_another_seed_is_another_split(how):
    labels = torch.arange(10).repeat(60)
    drawn = {partitions.partition_hash(partitions.partition(labels, 20, how, seed, 0)) for seed in range(20)}
    assert len(drawn) == 20


@given(
    sizes=st.lists(st.integers(40, 60), min_size=2, max_size=12),
    n_clients=st.integers(1, 40),
    k=st.integers(1, 12),
    seed=st.integers(0, 100),
)
def test_each_client_has_exactly_k_labels_of_even_shares(sizes, n_clients, k, seed):
    labels = torch.cat([torch.full((size,), c) for c, size in enumerate(sizes)])
    if k > len(sizes) or k * n_clients < len(sizes):
        with pytest.raises(InputError, match=rf"--partition labels:{k}: each of {n_clients} clients can have \d+ to"):
            partitions.partition(labels, n_clients, f"labels:{k}", seed)
        return
    table = partitions.histograms(labels, partitions.partition(labels, n_clients, f"labels:{k}", seed), len(sizes))
    assert ((table > 0).sum(1) == k).all()
    for i in range(n_clients):
        assert table[i, i % len(sizes)] > 0
    for counts in table.T:
        assert counts[counts > 0].max() - counts[counts > 0].min() <= 1


def test_a_split_of_every_kind_does_not_hang_on_how_the_labels_are_ordered_within_a_class():
    """What a client holds of a class is drawn from all of it: no block of neighbours."""
    labels = torch.arange(4).repeat_interleave(500)
    for how in HOWS:
        part = max(partitions.partition(labels, 4, how, 0, 0), key=len)
        own = part[labels[part] == labels[part].mode().values]
        if len(own) < 480:
            assert own.diff().min() < 0


# --------------------------------------------------------------------------------------------------------------------
# By hand


def test_two_labels_a_client_by_hand():
    """Class i modulo C for all; the others of a client are drawn as often as one another."""
    labels, others = torch.arange(5).repeat_interleave(40), Counter()
    for seed in range(300):
        parts = partitions.partition(labels, 7, "labels:2", seed)
        held = [set(labels[part].tolist()) for part in parts]
        assert all(i % 5 in own for i, own in enumerate(held))
        (other,) = held[0] - {0}
        others[other] += 1
        assert sum(map(len, parts)) == 200
    assert set(others) == {1, 2, 3, 4}
    assert all(abs(n - 75) < 4 * np.sqrt(300 * 0.25 * 0.75) for n in others.values())


def test_with_fewer_clients_than_classes_every_class_is_dealt():
    labels = torch.arange(10).repeat_interleave(30)
    for seed in range(30):
        table = partitions.histograms(labels, partitions.partition(labels, 4, "labels:3", seed), 10)
        assert (table.sum(0) == 30).all()
        assert ((table > 0).sum(1) == 3).all()
        assert [bool(table[i, i]) for i in range(4)] == [True] * 4


def test_shards_are_cut_from_the_sorted_samples():
    """10 classes of 60 in 40 shards of 15: each within one class, so that two a client are of one or two classes."""
    labels = torch.arange(10).repeat_interleave(60)
    parts = partitions.partition(labels, 20, "shards:2", 0)
    table = partitions.histograms(labels, parts, 10)
    assert set(table.flatten().tolist()) == {0, 15, 30}
    assert (table.sum(1) == 30).all()
    uneven = partitions.histograms(labels, partitions.partition(labels, 7, "shards:3", 0), 10).sum(1)
    assert uneven.max() - uneven.min() <= 3  # a shard has 28 or 29
    with pytest.raises(InputError, match=r"^--partition shards:31: 600 samples make no 620 shards for 20 clients$"):
        partitions.partition(labels, 20, "shards:31", 0)


@pytest.mark.parametrize("alpha", [0.01, 0.5, 1000.0])
def test_balanced_clients_are_of_one_size_and_use_up_all_classes(alpha):
    labels = torch.arange(10).repeat_interleave(torch.arange(10) * 10 + 37)
    table = partitions.histograms(labels, partitions.partition(labels, 13, f"balanced:{alpha}", 1), 10)
    assert table.sum(1).max() - table.sum(1).min() <= 1
    assert torch.equal(table.sum(0), torch.arange(10) * 10 + 37)


def test_balanced_mixes_follow_the_dirichlet_law_while_no_class_is_used_up():
    """One client among many: a share has the mean 1/C and the variance (C - 1) / C^2 (C a + 1), and what is counted of
    200 samples has that of the multinomial besides."""
    classes = [np.arange(c * 2000, (c + 1) * 2000) for c in range(4)]
    found, alpha, n = [], 0.7, 200
    for seed in range(300):
        positions, owners = balanced(classes, 40, alpha, np.random.default_rng(seed))
        first = positions[owners == 0][:n] // 2000
        found.append(np.bincount(first, minlength=4) / n)
    own = 3 / 16 / (4 * alpha + 1)
    expected = own + (1 / 4 * 3 / 4 - own) / n
    assert np.allclose(np.mean(found, 0), 1 / 4, atol=4 * np.sqrt(expected / 300))
    assert np.allclose(np.var(found, 0), expected, rtol=0.3)


def test_how_uneven_a_split_is_by_hand():
    """Clients of (4, 0), (0, 4) and (2, 2), and one without samples."""
    found = partitions.skew(torch.tensor([[4, 0], [0, 4], [2, 2], [0, 0]]))
    half = np.sqrt(1 - np.sqrt(1 / 2))  # of (1, 0) and (1/2, 1/2)
    assert found["hellinger"] == pytest.approx((1 + half + half) / 3)
    bits = -(3 / 4 * np.log2(3 / 4) + 1 / 4 * np.log2(1 / 4)) - 1 / 2
    assert found["jensen_shannon"] == pytest.approx((1 + 2 * np.sqrt(bits)) / 3)
    assert found["effective_classes"] == pytest.approx((1 + 1 + 2) / 3)
    assert found["size_gini"] == pytest.approx(0, abs=1e-12)
    sizes = [1, 1, 2, 4]
    gini = sum(abs(a - b) for a in sizes for b in sizes) / (2 * len(sizes) * sum(sizes))
    assert partitions.skew(torch.tensor(sizes)[:, None])["size_gini"] == pytest.approx(gini)


def test_unevenness_of_many_clients_is_that_of_some():
    table = torch.randint(0, 50, (2500, 10), generator=torch.Generator().manual_seed(0))
    some = partitions.skew(table[torch.linspace(0, 2499, 500).round().long()])
    assert partitions.skew(table)["hellinger"] == pytest.approx(some["hellinger"])


@given(
    sizes=st.lists(st.integers(40, 60), min_size=2, max_size=12),
    n_clients=st.integers(1, 40),
    k=st.integers(1, 12),
    seed=st.integers(0, 100),
)
def test_of_an_extended_dirichlet_split_each_class_is_at_enough_clients_and_each_client_has_few(
    sizes, n_clients, k, seed
):
    assume(k <= len(sizes) <= k * n_clients)
    labels = torch.cat([torch.full((size,), c) for c, size in enumerate(sizes)])
    how = f"extended:{k},1000.0"  # so nearly even that each has a part of all its classes, if there is one for each
    table = partitions.histograms(labels, partitions.partition(labels, n_clients, how, seed, 0), len(sizes))
    assert ((table > 0).sum(1) == k).all()
    assert ((table > 0).sum(0) >= max(1, k * n_clients // len(sizes) // 2)).all()


def test_shares_of_an_extended_dirichlet_split_follow_its_law():
    """Two clients of both classes: a share is of Beta(a, a), with the variance 1 / 4 (2 a + 1)."""
    labels, alpha, shares = torch.arange(2).repeat_interleave(500), 0.7, []
    for seed in range(400):
        table = partitions.histograms(labels, partitions.partition(labels, 2, f"extended:2,{alpha}", seed, 0), 2)
        shares += (table[0] / 500).tolist()
    assert np.mean(shares) == pytest.approx(1 / 2, abs=0.04)
    assert np.var(shares) == pytest.approx(1 / 4 / (2 * alpha + 1), rel=0.1)


def test_a_share_of_similar_samples_by_hand():
    """Of 4 classes of 300, a fifth is dealt out; of the rest, each of 4 clients has about one class."""
    labels = torch.arange(4).repeat_interleave(300)
    table = partitions.histograms(labels, partitions.partition(labels, 4, "similarity:0.2", 0), 4)
    assert table.sum(1).tolist() == [300] * 4
    assert (table.diagonal() > 230).all()
    assert (table.sum(1) - table.diagonal() > 30).all()
    alone = partitions.histograms(labels, partitions.partition(labels, 4, "similarity:0", 0), 4)
    assert torch.equal(alone, 300 * torch.eye(4, dtype=torch.int64))
    uneven = partitions.partition(labels, 7, "similarity:0.333", 0)
    assert {len(part) for part in uneven} == {171, 172}


class Shares:
    """A NumPy generator that draws what a test says."""

    def __init__(self, shares):
        self.shares = shares

    def dirichlet(self, alphas):
        self.alphas = alphas.tolist()
        return np.array(self.shares)

    def permutation(self, n):
        return np.arange(n)[::-1]


def test_sizes_by_a_dirichlet_distribution_by_hand():
    """10 samples, shares 0.55, 0.25, 0.2: cut at 5.5 and 8, rounded down."""
    rng = Shares([0.55, 0.25, 0.2])
    order, owners = PARTITIONS["quantity"]([np.arange(4), np.arange(4, 10)], 3, 0.7, rng)
    assert rng.alphas == [0.7] * 3
    assert order.tolist() == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert owners.tolist() == [0] * 5 + [1] * 3 + [2] * 2


def test_sizes_vary_with_alpha_and_classes_do_not():
    labels = torch.arange(10).repeat(500)
    spread = {}
    for alpha in (0.5, 100.0):
        parts = partitions.partition(labels, 10, f"quantity:{alpha}", 0, 50)
        table = partitions.histograms(labels, parts, 10).float()
        spread[alpha] = table.sum(1).std() / 500
        shares = table / table.sum(1, keepdim=True)
        assert shares.max() < 0.25
    assert spread[100.0] < 0.2 < 0.5 < spread[0.5]


def test_a_small_dirichlet_is_skewed_and_a_large_one_is_not():
    labels = torch.arange(10).repeat(500)

    def classes_held(how):
        table = partitions.histograms(labels, partitions.partition(labels, 20, how, 0), 10)
        return (table > 0.02 * table.sum(1, keepdim=True)).sum(1).float().mean()

    assert classes_held("dirichlet:0.1") < 5
    assert classes_held("dirichlet:100.0") == 10
    assert classes_held("iid") == 10


def test_histograms_are_those_of_the_images_a_client_really_trains_on(experiment):
    """Trap: positions within a subset are not positions within the whole. Here the images themselves are looked up."""
    run = experiment(dirichlet=0.3)
    truth = {image: label for label, image in keys(datasets.load_dataset("DIGITS", ".", 0).train)}
    table = partitions.histograms(run.splits.train.labels, run.clients.parts, 10)
    for number, part in enumerate(run.clients.parts):
        counts = [0] * 10
        for x, y in zip(run.splits.train.images[part], run.splits.train.labels[part], strict=True):
            assert truth[x.numpy().tobytes()] == y
            counts[y] += 1
        assert counts == table[number].tolist()
    assert table.sum() == len(run.splits.train)


# --------------------------------------------------------------------------------------------------------------------
# What cannot be


def test_what_cannot_be_split_says_what_to_change():
    with pytest.raises(InputError, match="lower --n_clients or --min_client_samples"):
        partitions.partition(torch.arange(10).repeat(20), 201, "iid", 0)


@pytest.mark.parametrize(("how", "least"), [("labels:2", 64), ("quantity:0.5", 40)])
def test_where_clients_are_left_short_the_advice_is_one_that_helps(how, least, monkeypatch):
    labels, work, draw = torch.arange(10).repeat(130), [], PARTITIONS[how.partition(":")[0]]

    def counting(classes, n_clients, *more):
        work.append(sum(map(len, classes)) + len(classes) * n_clients)
        return draw(classes, n_clients, *more)

    counting.registered = draw.registered
    monkeypatch.setattr(f"fedmerge.partitions.{draw.__name__}.{draw.__name__}", counting)
    with pytest.raises(InputError, match=f"of 20 clients with fewer than --min_client_samples {least}") as caught:
        partitions.partition(labels, 20, how, 0, least)
    assert sum(work) < 2 * enough.WORK
    fewer = int(re.search(r"lower --n_clients to (\d+), or lower --min_client_samples", str(caught.value))[1])
    assert 1 < fewer < 20
    assert min(map(len, partitions.partition(labels, fewer, how, 0, least))) >= least
    assert whole(partitions.partition(labels, 20, how, 0, 0), 1300)


@pytest.mark.slow
def test_a_hundred_thousand_clients_are_split_in_every_way():
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 10, 200_000))
    for how in ("iid", "dirichlet:1.0", "labels:2", "quantity:0.5"):
        assert whole(partitions.partition(labels, 100_000, how, 0, 0), 200_000)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--partition labels:0", "'labels:0' is not labels:VALUE: '0' is not a whole number"),
        ("--partition labels:x", "'labels:x' is not labels:VALUE"),
        ("--partition labels", "'labels' is not labels:VALUE"),
        ("--partition quantity:-1", "'quantity:-1' is not quantity:VALUE: '-1' is not a positive number"),
        ("--partition iid:3", "'iid:3' is not iid"),
        (
            "--partition extended:2",
            "'extended:2' is not extended:VALUE,VALUE: it takes 2 values with commas",
        ),
        ("--partition extended:2,0", "'extended:2,0' is not extended:VALUE,VALUE: '0' is not a positive number"),
        ("--partition labls:2", "did you mean labels?"),
        ("--partition labels:2 --dirichlet 0.5", "both say how the data are split: give one"),
        ("--partition iid --dirichlet iid", "both say how the data are split: give one"),
        ("--partition labels:2 --algorithm centralised", "--algorithm centralised needs --dirichlet iid"),
    ],
)
def test_nonsense_is_refused_in_one_line_before_any_work(flags, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        parse_args(flags.split())
    error = capsys.readouterr().err
    assert (caught.value.code, error.count("\n")) == (2, 1)
    assert said in error
    assert not list(tmp_path.iterdir())


def test_more_labels_than_there_are_classes_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="--partition labels:11: each of 20 clients can have 1 to 10 classes"):
        fedalg.main(resolve({**QUICK, "partition": "labels:11"}))
    assert not list(tmp_path.rglob("*.csv"))
    with pytest.raises(InputError, match="--partition: 'labels:0' is not labels:VALUE"):
        resolve({"partition": "labels:0"})


# --------------------------------------------------------------------------------------------------------------------
# A run on one


def test_dirichlet_and_iid_are_what_the_flag_of_old_makes():
    for words, old in (("dirichlet:0.5", 0.5), ("iid", "iid")):
        args, usual = (resolve({name: value}) for name, value in (("partition", words), ("dirichlet", old)))
        assert vars(args) == vars(usual)
        assert run_name(args) == run_name(usual)


def test_what_was_typed_wins_over_a_file_of_flags(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, line in (("old", "--dirichlet 0.5"), ("new", "--partition labels:2")):
        Path(name).write_text(line)
    args = parse_args(["--config", "old", "--partition", "labels:2"])
    assert (args.partition, args.dirichlet) == ("labels:2", None)
    args = parse_args(["--config", "new", "--dirichlet", "0.5"])
    assert (args.partition, args.dirichlet) == (None, 0.5)
    Path("both").write_text("--dirichlet 0.5\n--partition labels:2")
    with pytest.raises(SystemExit):
        parse_args(["--config", "both"])


@pytest.fixture
def go(tmp_path, monkeypatch, capsys):
    """A function of flags: run fedalg.py with these in the test's folder; return what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*flags):
        capsys.readouterr()
        fedalg.main(parse_args([*(f"--{name}={value}" for name, value in QUICK.items()), "--device=cpu", *flags]))
        return capsys.readouterr()

    return run


@pytest.mark.slow
def test_a_run_is_named_after_its_split_everywhere(go, tmp_path):
    for seed in (0, 1):
        said = go("--partition=labels:2", f"--seed={seed}")
        assert re.match(r"split labels-2: 20 clients, samples .*, classes 2/2/2 \(min/median/max\); ", said.err)
        go("--dirichlet=0.5", f"--seed={seed}")
    go("--partition=labels:10")
    assert "already finished" in go("--partition=labels:2").out
    names = sorted(path.stem for path in tmp_path.glob("metrics/*.json"))
    assert [re.match(r"fedavg_DIGITS_([a-z0-9.-]*)_\d_n_epochs", name)[1] for name in names] == [
        *("0.5", "0.5", "labels-10", "labels-2", "labels-2"),
    ]
    record = json.loads((tmp_path / "metrics" / f"{names[-1]}.json").read_text())
    assert record["partition"]["name"] == "labels-2"
    assert (record["settings"]["partition"], record["settings"]["dirichlet"]) == ("labels:2", None)
    with open("results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["Dirichlet"] for row in rows] == ["labels-2", "0.5", "labels-2", "0.5", "labels-10"]
    assert "settings.partition" not in rows[0]
    found, foreign = runs.load_runs("metrics")
    assert not foreign
    levels = sorted({run.level for run in found}, key=lambda level: level.order)
    assert [level.title for level in levels] == ["Dirichlet(0.5)", "2-label clients", "10-label clients"]
    assert [level.file for level in levels] == ["0.5", "labels-2", "labels-10"]


@pytest.mark.slow
def test_its_figure_has_a_name_and_a_title_of_its_own(tmp_path):
    for name in ("labels:2", None):
        write_run(tmp_path / "m", [0.2, 0.4], dirichlet=None if name else 0.5, partition=name)
    assert plotting.main(["--csv_dir", str(tmp_path / "m"), "--output_dir", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").glob("*_comparison.png")} == {
        "DIGITS_labels-2_comparison.png",
        "DIGITS_0.5_comparison.png",
    }
    table = pd.read_csv(tmp_path / "out" / "DIGITS_summary.csv", dtype=str)
    assert table["split"].tolist() == ["0.5", "labels-2"]


def test_a_drawn_split_is_saved_and_read_and_belongs_to_its_partition(go, capsys):
    go("--partition=quantity:0.5", "--partition_file=s.json")
    saved = json.loads(Path("s.json").read_text())
    assert saved["drawn_by"]["partition"] == "quantity:0.5"
    run = prepare(resolve({"partition": "quantity:0.5", "partition_file": "s.json", "device": "cpu"}))
    assert [part.tolist() for part in run.clients.parts] == saved["clients"]
    assert "partition_file" not in run.name
    assert run_record.record(run, finished=False)["partition"]["name"] == "quantity-0.5"
    for other in ("labels:2", "quantity:0.6"):
        with pytest.raises(InputError, match=rf"was not drawn with --partition {other} \(but quantity:0.5\)"):
            resolve({"partition": other, "partition_file": "s.json"})
    with pytest.raises(InputError, match=r"--dirichlet iid \(but None\), --partition None \(but quantity:0.5\)"):
        resolve({"partition_file": "s.json"})
    del saved["drawn_by"]["partition"]
    saved["drawn_by"]["dirichlet"] = 0.5  # of before there were others
    Path("old.json").write_text(json.dumps(saved))
    assert resolve({"dirichlet": 0.5, "partition_file": "old.json"}).partition is None


def test_a_split_made_by_hand_goes_with_no_partition_and_is_not_called_like_one(tmp_path):
    labels = datasets.load_dataset("DIGITS", ".", 0).train.labels
    content = {"clients": [part.tolist() for part in partitions.partition(labels, 20, "iid", 0)]}
    content["labels_sha256"] = partitions.labels_hash(labels)
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(content))
    settings = {"partition_file": str(file), "partition": "labels:2"}
    args = resolve(settings)
    assert (args.partition, args.dirichlet) == (None, None)
    with pytest.raises(InputError, match="--partition has no effect with --partition_file"):
        resolve(settings, explicit={"partition"})
    for name, wrong in (
        ("labels-2", True),
        ("extended-2-0.5", True),
        ("extended-2-1e-05", True),
        ("users", True),
        ("labels-of-mine", False),
        ("my-labels-2", False),
    ):
        file.write_text(json.dumps({**content, "name": name}))
        if wrong:
            with pytest.raises(InputError, match=f"cannot be called '{name}'"):
                run_name(args)
        else:
            assert f"_{name}_" in run_name(args)


def test_settings_of_a_record_give_the_same_run(tmp_path):
    args = resolve({"partition": "labels:3", "seed": 2})
    again = checked_settings(json.loads(json.dumps(settings_of(args))), "clients.json")
    assert run_name(again) == run_name(args)
    assert again.dirichlet is None


@pytest.mark.parametrize("how", ["iid", "dirichlet:0.5", "labels:2", "quantity:0.5"])
def test_every_client_has_one_domain_and_the_clients_of_a_domain_share_it(how):
    rng = torch.Generator().manual_seed(0)
    labels, domains = torch.randint(4, (900,), generator=rng), torch.randint(3, (900,), generator=rng)
    parts = partitions.partition_by_domain(labels, domains, 6, how, seed=1, min_samples=5)
    assert whole(parts, 900)
    assert [domains[part].unique().tolist() for part in parts] == [[0], [1], [2], [0], [1], [2]]
    assert min(map(len, parts)) >= 5
    if how == "labels:2":
        assert [len(labels[part].unique()) for part in parts] == [2] * 6
    assert same(parts, partitions.partition_by_domain(labels, domains, 6, how, seed=1, min_samples=5))
    with pytest.raises(InputError, match="4 is no multiple of the 3 domains"):
        partitions.partition_by_domain(labels, domains, 4, how, seed=1)


PLUGIN = '''
import numpy as np
from fedmerge.registry import partition


@partition("blocks", value="count", title="blocks of {value}")
def blocks(classes, n_clients, size, rng):
    """blocks of so many neighbours, in turn; what is over belongs to nobody"""
    order = np.sort(np.concatenate(classes))
    order = order[: len(order) // size * size]
    return order, np.arange(len(order)) // size % n_clients
'''


def test_a_partition_is_one_file(go, tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    use_plugins([tmp_path / "mine.py"])
    with_it = {"partition": "blocks:100", "n_clients": 3, "device": "cpu"}
    run = prepare(resolve(with_it))
    assert [len(part) for part in run.clients.parts] == [400, 400, 400]
    assert run.clients.parts[1][:100].tolist() == list(range(100, 200))
    said = go("--plugin=mine.py", "--partition=blocks:100", "--n_clients=3")
    assert "94 of 1294 samples unused" in said.err
    assert re.search("_blocks-100_0_", said.out)
    (found,), _ = runs.load_runs("metrics")
    assert found.level.title == "blocks of 100"
    assert provenance.code_hash(with_it) != provenance.code_hash({**with_it, "partition": "labels:2"})


def test_a_drawn_split_of_two_values_has_a_plain_name():
    assert drawn_name("extended:2,0.5") == "extended-2-0.5"
