"""A round of the loop against clients that are trained one by one, and how settings reach what does the work."""

import pytest
import torch
from conftest import train_round

from fedmerge import datasets, partitions, wire
from fedmerge.config.resolve import resolve
from fedmerge.randomness import generator
from fedmerge.simulation import client_pool
from fedmerge.simulation.experiment import assemble
from fedmerge.simulation.sampling import sample_clients


def test_the_seed_decides_the_split_the_start_and_the_clients(experiment):
    a, b, c = (experiment(seed=seed, dirichlet=0.5) for seed in (0, 0, 1))
    assert torch.equal(a.server.theta, b.server.theta)
    assert not torch.equal(a.server.theta, c.server.theta)
    split_of = {name: partitions.partition_hash(run.clients.parts) for name, run in (("a", a), ("b", b), ("c", c))}
    assert split_of["a"] == split_of["b"] != split_of["c"]


def test_augmentation_reaches_the_clients():
    g = torch.Generator().manual_seed(0)
    images = datasets.Images(torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8, generator=g), torch.arange(40) % 10)
    splits = datasets.Splits(images, images, images, 10, torch.full((3,), 0.5), torch.full((3,), 0.25))
    models = []
    for augment in ("none", "standard", "standard"):
        settings = {"dataset": "CIFAR10", "model_name": "cnn", "augment": augment, "n_client_epochs": 1, "n_clients": 1}
        run = assemble(resolve(settings), splits, [torch.arange(40)], torch.device("cpu"))
        train_round(run, 1)
        models.append(run.server.theta)
    assert not torch.equal(models[0], models[1])
    assert torch.equal(models[1], models[2])


def test_deterministic_asks_torch_for_it(experiment):
    try:
        experiment(deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_round_of_fedavg_is_the_weighted_mean_of_separately_trained_clients(experiment):
    run = experiment(dirichlet=0.5, norm="batch", min_client_samples=2, shared_init=False)
    start = run.server.theta.clone()
    numbers = sample_clients(20, 0.2, 0, 1)
    row = train_round(run, 1)
    total = sum(len(run.clients.parts[n]) for n in numbers)
    mean = sum(
        run.clients.trainer.client(n, 1).train(start).clone() * (len(run.clients.parts[n]) / total) for n in numbers
    )
    assert torch.allclose(run.server.theta, mean, atol=1e-5)
    assert row["clients"] == 4
    assert row["bytes_up"] == row["bytes_down"] == 4 * (32 + 4 * run.model.layout.dim)
    uniform = experiment(dirichlet=0.5, norm="batch", min_client_samples=2, weighting="uniform")
    train_round(uniform, 1)
    mean = sum(run.clients.trainer.client(n, 1).train(start).clone() / 4 for n in numbers)
    assert torch.allclose(uniform.server.theta, mean, atol=1e-5)


def test_centralised_training_is_one_client_with_everything_that_sends_nothing(experiment):
    run = experiment(algorithm="centralised")
    start = run.server.theta.clone()
    row = train_round(run, 1)
    assert len(run.clients.parts) == 1
    assert len(run.clients.parts[0]) == len(run.splits.train)
    assert torch.allclose(run.server.theta, run.clients.trainer.client(0, 1).train(start), atol=1e-6)
    assert row["bytes_up"] == row["bytes_down"] == row["bytes_up_total"] == row["bytes_down_total"] == 0


def test_every_client_has_the_samples_asked_for(experiment):
    sizes = [sorted(map(len, experiment(dirichlet=0.1, min_client_samples=n).clients.parts)) for n in (1, 15)]
    assert sizes[0][0] < 15 <= sizes[1][0]


def all_that_arrives(run, monkeypatch):
    """Return a dict that gets the deltas and the masks of the next round, of which nothing is merged."""
    merged = {}

    def note(theta, step, aggregate):
        merged.update(deltas=aggregate.deltas.clone(), masks=aggregate.masks)
        return theta

    monkeypatch.setattr(run.server, "keeps_all", True)
    monkeypatch.setattr(run.server.algorithm, "merge", note)
    return merged


def test_what_the_server_merges_is_what_arrived(experiment, monkeypatch):
    run = experiment(value_bits=4)
    merged = all_that_arrives(run, monkeypatch)
    train_round(run, 1)
    n = run.model.layout.n_trainable
    blocks = merged["deltas"][0, : n - n % 1024].view(-1, 1024)
    assert max(len(set(block.abs().tolist())) for block in blocks) <= 8  # a sign and three bits


def test_who_sends_everything_masks_nothing(experiment, monkeypatch):
    run = experiment(algorithm="las")
    merged, choose = all_that_arrives(run, monkeypatch), run.server.compressor.choose
    first = run.server.participants(1)[0][0]

    def all_but_the_first(change, start, client):
        return None if client.id == first else choose(change, start, client)

    monkeypatch.setattr(run.server.compressor, "choose", all_but_the_first)
    row = train_round(run, 1)
    assert merged["masks"][0].all()
    assert not merged["masks"][1].all()
    assert row["kept_share"] == pytest.approx(merged["masks"].float().mean().item())


def test_settings_reach_the_wire(experiment, monkeypatch):
    settings = {"downlink": "sparse", "down_bits": 4, "down_sparsity": 0.3, "seed": 5, "wire": "real"}
    down = experiment(value_bits=8, **settings).server.downlink
    assert down.settings == wire.DownlinkSettings("sparse", 0.3, 4, shared_init=True, real=True, seed=5)
    assert experiment(value_bits=8, downlink="individual").server.downlink.settings.bits == 8
    keys, make = [], generator
    monkeypatch.setattr(client_pool, "generator", lambda *key: keys.append(key) or make(*key))
    run = experiment(value_bits=8)
    for round in (1, 2):
        train_round(run, round)
    rounding = [key for key in keys if "rounding" in key]
    assert rounding == [(0, "rounding", r, n) for r in (1, 2) for n in sample_clients(20, 0.2, 0, r)]


def test_local_steps_end_a_clients_round(experiment):
    run = experiment(n_client_epochs=5, local_steps=3)
    client = run.clients.trainer.client(0, 1)
    client.train(run.server.theta)
    assert client.seen == 3 * 16


@pytest.mark.gpu
def test_a_gpu_trains_what_a_cpu_trains(experiment):
    models = []
    for device in ("cpu", "cuda"):
        run = experiment(device=device, norm="batch", min_client_samples=2)
        train_round(run, 1)
        models.append(run.server.theta.cpu())
    assert (models[0] - models[1]).norm() < 1e-2 * models[0].norm()
