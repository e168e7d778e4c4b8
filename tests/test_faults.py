"""Clients that lie, fail or diverge: attacks against twins, robust merges by hand, updates that never arrive."""

import json
import math

import pytest
import torch
from conftest import QUICK, merge
from hypothesis import given, settings
from hypothesis import strategies as st

import fedalg
from fedmerge import saving
from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.algorithms.robust import Median, MultiKrum, TrimmedMean
from fedmerge.config.resolve import resolve
from fedmerge.config.run_name import run_name
from fedmerge.networks.flat_model import Layout
from fedmerge.simulation import rounds, sampling
from fedmerge.simulation.attacks import Attack
from fedmerge.simulation.sampling import dropped, sample_clients

LAYOUT = Layout(names=("a",), sizes=(2,), n_trainable=2, dim=3)
EVEN = torch.full((5,), 0.2)


# --------------------------------------------------------------------------------------------------------------------
# Merges


def merged(algorithm, deltas, p=None):
    deltas = torch.tensor(deltas, dtype=torch.float32)
    p = torch.full((len(deltas),), 1 / len(deltas)) if p is None else torch.tensor(p)
    return merge(algorithm, torch.tensor([10.0, 20.0, 30.0]), deltas, None, p)


def test_the_median_by_hand():
    odd = [[1, 5, 0], [2, -4, 0], [900, 6, 1]]
    assert merged(Median(LAYOUT), odd).tolist() == [12, 25, 30]
    assert merged(Median(LAYOUT), [*odd, [3, 8, 1]]).tolist() == [12.5, 25.5, 30.5]


def test_the_trimmed_mean_by_hand():
    deltas = [[1, 0, 0], [2, 0, 0], [3, 9, 0], [4, 1, 0], [900, 2, 5]]
    assert merged(TrimmedMean(LAYOUT, trim=0.2), deltas).tolist() == [13, 21, 30]
    assert merged(TrimmedMean(LAYOUT, trim=0.45), deltas).tolist() == [13, 21, 30]  # all but the middle one
    assert merged(TrimmedMean(LAYOUT, trim=0.0), deltas).tolist() == [192, 22.399999618530273, 31]


def test_multi_krum_by_hand():
    """f = 1 of 5: the score is over the two nearest. The lonely (9, 9, 9) is left out, the rest averaged by weight."""
    deltas = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [9, 9, 9], [1, 1, 0]]
    assert merged(MultiKrum(LAYOUT, liars=0.2), deltas).tolist() == [10.5, 20.5, 30]
    weighted = merged(MultiKrum(LAYOUT, liars=0.2), deltas, [0.1, 0.3, 0.1, 0.4, 0.1])
    assert torch.allclose(weighted, torch.tensor([10 + 0.4 / 0.6, 20 + 0.2 / 0.6, 30]))


@given(seed=st.integers(0, 10**6), n=st.integers(3, 9))
@settings(max_examples=30)
def test_robust_merges_equal_slow_twins(seed, n):
    deltas = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    columns = [sorted(column) for column in deltas.T.tolist()]
    k = math.ceil(0.2 * n)
    median = [(column[(n - 1) // 2] + column[n // 2]) / 2 for column in columns]
    trimmed = [sum(column[k : n - k]) / (n - 2 * k) for column in columns]
    scores, f = [], k
    while f and 2 * f + 2 >= n:
        f -= 1
    for i in range(n):
        others = [deltas[j, :2].tolist() for j in range(n) if j != i]  # the third is a buffer
        apart = sorted(
            sum((a - b) ** 2 for a, b in zip(deltas[i, :2].tolist(), other, strict=True)) for other in others
        )
        scores.append(sum(apart[: max(1, n - f - 2)]))
    chosen = sorted(range(n), key=scores.__getitem__)[: n - f]
    krum = [sum(deltas[i][c].item() for i in chosen) / len(chosen) for c in range(3)]
    zero, p = torch.zeros(3), torch.full((n,), 1 / n)
    for algorithm, twin in ((Median, median), (TrimmedMean, trimmed), (MultiKrum, krum)):
        assert torch.allclose(merge(algorithm(LAYOUT), zero, deltas, None, p), torch.tensor(twin), atol=1e-5)


@pytest.mark.parametrize("algorithm", [Median, TrimmedMean, MultiKrum])
def test_a_robust_merge_stays_among_the_honest_whatever_one_of_five_sends(algorithm):
    honest = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    for lie in (1e6, -1e6, 1e30):
        deltas = torch.cat([honest, torch.full((1, 3), lie)])
        step = merge(algorithm(LAYOUT), torch.zeros(3), deltas, None, EVEN)
        assert (step >= honest.min(0).values).all()
        assert (step <= honest.max(0).values).all()
        assert merge(FedAvg(LAYOUT), torch.zeros(3), deltas, None, EVEN).abs().max() > 1e5


# --------------------------------------------------------------------------------------------------------------------
# Lies


def test_attackers_are_a_share_of_the_clients_and_stay_the_same():
    numbers = Attack("noise", 50, 0.2, 1.0, seed=3).numbers
    assert len(numbers) == 10
    assert numbers == Attack("sign_flip", 50, 0.2, 5.0, seed=3).numbers != Attack("noise", 50, 0.2, 1.0, seed=4).numbers
    assert not Attack("noise", 20, 0.02, 1.0, seed=0).numbers
    with pytest.raises(ValueError, match="no attack x"):
        Attack("x", 20, 0.2, 1.0, seed=0)


def trained(exp, number):
    return exp.trainer.client(number, 1).train(exp.theta).clone()


def test_a_flipped_sign_is_the_honest_update_the_other_way(experiment):
    honest, lying = experiment(norm="batch"), experiment(norm="batch", attack="sign_flip", attack_strength=3.0)
    n, attackers = honest.model.layout.n_trainable, lying.trainer.attack.numbers
    for number in (min(attackers), min(set(range(20)) - attackers)):
        factor = -3.0 if number in attackers else 1.0
        update = trained(honest, number) - honest.theta
        expected = honest.theta + torch.cat([factor * update[:n], update[n:]])
        assert torch.allclose(trained(lying, number), expected, atol=1e-6)


def test_noise_has_its_size_from_the_honest_update_and_its_draws_from_round_and_client(experiment):
    honest, lying = experiment(), experiment(attack="noise", attack_strength=4.0, attackers=1.0)
    noises = [trained(lying, number) - lying.theta for number in (0, 1)]
    for number, noise in enumerate(noises):
        size = (trained(honest, number) - honest.theta).square().mean().sqrt()
        assert noise.square().mean().sqrt() == pytest.approx(4 * size.item(), rel=0.02)
    assert torch.corrcoef(torch.stack(noises))[0, 1].abs() < 0.05
    assert torch.equal(trained(lying, 0) - lying.theta, noises[0])


def test_flipped_labels_are_those_of_a_client_with_such_data(experiment):
    other, lying = experiment(), experiment(attack="label_flip")
    number = min(lying.trainer.attack.numbers)
    other.splits.train.labels.copy_(9 - other.splits.train.labels)
    assert torch.equal(trained(other, number), trained(lying, number))


def test_nobody_lying_is_an_honest_run(experiment):
    runs = experiment(), experiment(attack="sign_flip", attackers=0.01)
    for exp in runs:
        rounds.train_round(exp, 1)
    assert torch.equal(runs[0].theta, runs[1].theta)


# --------------------------------------------------------------------------------------------------------------------
# Updates that do not arrive, or are not finite


def test_who_drops_out_has_downloaded_and_the_rest_is_merged_as_if_alone(experiment):
    exp, whole = experiment(dropout=0.5, participation=0.5, shared_init=False), experiment(participation=0.5)
    sampled = sample_clients(20, 0.5, 0, 1)
    lost = dropped(sampled, 0.5, 0, 1)
    assert 0 < len(lost) < 10
    row = rounds.train_round(exp, 1)
    arrived = [number for number in sampled if number not in lost]
    assert row["clients"] == len(arrived)
    updates = torch.stack([trained(whole, number) - whole.theta for number in arrived])
    samples = torch.tensor([float(len(whole.parts[number])) for number in arrived])
    assert torch.allclose(exp.theta, whole.theta + samples / samples.sum() @ updates, atol=1e-6)
    for number in sampled:
        _, up, down = exp.traffic[number]
        assert down > 0
        assert (up == 0) == (number in lost)


def test_who_drops_out_is_drawn_anew_each_round():
    losses = [len(dropped(range(100), 0.3, 0, round)) for round in range(50)]
    assert 0.27 < sum(losses) / 5000 < 0.33
    assert dropped(range(100), 0.3, 0, 1) != dropped(range(100), 0.3, 0, 2)


@pytest.mark.parametrize("extra", [(), ("--algorithm", "las", "--preset", "compact", "--wire", "real")])
def test_a_round_of_which_nothing_arrives_changes_nothing(program, tmp_path, extra):
    done = program(*extra, "--n_epochs", "4", "--n_client_epochs", "1", "--dropout", "0.95")
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "metrics").glob("*.csv")
    rows = [line.split(",") for line in path.read_text().splitlines()]
    clients, accuracy = rows[0].index("clients"), rows[0].index("test_accs")
    empty = [i for i, row in enumerate(rows) if row[clients] == "0"]
    assert empty
    assert all(rows[i][accuracy] == rows[i - 1][accuracy] for i in empty if i > 1)


def poison(exp, number, monkeypatch):
    """Make what client `number` trains not finite in the next rounds."""
    honest = exp.algorithm.upload

    def upload(delta, start, client):
        if client.number == number:
            delta[7] = float("nan")
        return honest(delta, start, client)

    monkeypatch.setattr(exp.algorithm, "upload", upload)


@pytest.mark.parametrize("wire", ["size", "real"])
def test_an_update_that_is_not_finite_is_left_out_if_asked(experiment, monkeypatch, capsys, wire):
    exp = experiment(algorithm="las", residual="client", on_nan="skip", wire=wire)
    alone = experiment(algorithm="las", residual="client", wire=wire)
    number, *others = sample_clients(20, 0.2, 0, 1)
    poison(exp, number, monkeypatch)
    row = rounds.train_round(exp, 1)
    assert row["clients"] == 3
    assert f"round 1, client {number}: the update is not finite: left out" in capsys.readouterr().err
    monkeypatch.setattr(sampling, "sample_clients", lambda *arguments: others)
    expected = rounds.train_round(alone, 1)
    assert torch.equal(exp.theta, alone.theta)
    assert {k: row[k] for k in ("train_losses", "train_accs", "kept_share")} == {
        k: expected[k] for k in ("train_losses", "train_accs", "kept_share")
    }
    assert sorted(exp.algorithm.memory.left) == sorted(others)
    monkeypatch.undo()
    assert rounds.train_round(exp, 2)["clients"] == 4
    assert exp.theta.isfinite().all()


def test_a_client_whose_update_is_left_out_does_not_keep_the_model_behind_it(experiment, monkeypatch):
    exp = experiment(algorithm="moon", on_nan="skip")
    number, *others = sample_clients(20, 0.2, 0, 1)
    poison(exp, number, monkeypatch)
    rounds.train_round(exp, 1)
    assert sorted(exp.trainer.local.last) == sorted(others)


def test_if_no_update_is_finite_the_model_stays(experiment, monkeypatch):
    exp = experiment(on_nan="skip")
    before = exp.theta.clone()
    monkeypatch.setattr(
        exp.algorithm,
        "upload",
        lambda delta, start, client: FedAvg.upload(exp.algorithm, delta.fill_(torch.nan), start, client),
    )
    assert rounds.train_round(exp, 1)["clients"] == 0
    assert torch.equal(exp.theta, before)


def test_a_run_that_crashes_is_no_run_that_goes_on(tmp_path, monkeypatch):
    """An exception that nobody foresaw, as of somebody's own algorithm."""
    out = {"metrics_dir": "m", "plots_dir": "p", "checkpoint_dir": "c", "results_file": "r.csv"}
    out = {name: str(tmp_path / file) for name, file in out.items()}
    args = resolve({**QUICK, "device": "cpu", **out})

    def crash(exp, metrics, keeper):
        saving.write_json(metrics / f"{exp.name}.json", {"run": exp.name, "finished": False, "failed": None})
        return {}["control"]

    monkeypatch.setattr(fedalg, "run", crash)
    with pytest.raises(KeyError):
        fedalg.main(args)
    record = json.loads((tmp_path / "m" / f"{run_name(args)}.json").read_text())
    assert record["failed"] == "KeyError: 'control'"
