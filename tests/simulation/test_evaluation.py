"""What a model is judged by: predictions, losses, accuracies, and which model that is."""

import pytest
import torch
from conftest import evaluate, train_round

import fedalg
from fedmerge import datasets, networks
from fedmerge.datasets import batches
from fedmerge.reporting import run_record
from fedmerge.simulation.experiment import build_module


@pytest.mark.slow
def test_each_domain_is_judged_by_its_own_clients_model(experiment):
    """FedBN under feature shift, two clients a domain, against one domain at a time."""
    run = experiment(algorithm="fedbn", norm="batch", shift="feature", n_clients=10, participation=1.0)
    train_round(run, 1)
    loss, accuracy, (predictions, judged) = evaluate(run, run.splits.test)
    run.history.judged = predictions, judged
    losses, accuracies = [], {name: [] for name in run.splits.domains}
    for number in range(10):
        (domain,) = run.splits.train.domains[run.clients.parts[number]].unique().tolist()
        own = run.splits.test[run.splits.test.domains == domain]
        logits = run.evaluator.predict(run.server.algorithm.client_model(run.server.theta, number), own)
        losses.append(torch.nn.functional.cross_entropy(logits, own.labels).item())
        accuracies[run.splits.domains[domain]].append((logits.argmax(1) == own.labels).float().mean().item())
    assert loss == pytest.approx(sum(losses) / 10, rel=1e-5)
    means = {name: sum(both) / 2 for name, both in accuracies.items()}
    assert accuracy == pytest.approx(sum(means.values()) / 5)
    assert run_record.domain_accuracy(run) == pytest.approx(means)


@pytest.mark.slow
def test_a_sparse_downlink_is_judged_by_what_clients_hold(experiment):
    run = experiment(downlink="sparse", down_sparsity=0.05)
    train_round(run, 1)
    assert not torch.equal(run.server.downlink.model, run.server.theta)
    assert torch.equal(run.server.served(), run.server.downlink.model)
    ahead = experiment(algorithm="fedacg", acg_momentum=0.5, downlink="sparse", down_sparsity=1.0, down_bits=32)
    for round in (1, 2):
        train_round(ahead, round)
    assert torch.allclose(ahead.server.served(), ahead.server.theta, atol=1e-5)
    assert not torch.allclose(ahead.server.downlink.model, ahead.server.theta, atol=1e-3)
    other = experiment(algorithm="fedacg", acg_momentum=0.5)
    train_round(other, 1)
    train_round(other, 2)
    assert other.server.served() is other.server.theta
    assert torch.equal(other.server.downlink.model, other.server.algorithm.broadcast(other.server.theta))


def test_evaluation_is_of_the_servers_model_in_evaluation_mode(experiment):
    run = experiment(norm="batch")
    train_round(run, 1)
    before = run.server.theta.clone()
    loss, accuracy, (predictions, _) = evaluate(run, run.splits.test)
    module = build_module(run.settings, run.splits)
    flat = networks.FlatModel(module)
    flat.load(before)
    logits = module.eval()(run.splits.normalise(run.splits.test.images))
    assert torch.equal(predictions, logits.argmax(1))
    assert accuracy == (logits.argmax(1) == run.splits.test.labels).double().mean().item()
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, run.splits.test.labels).item(), rel=1e-4)
    assert torch.equal(run.server.theta, before)
    assert torch.equal(run.model.vector, before)  # evaluating moves no running statistics


def test_eval_every_and_eval_train(experiment):
    run, rows = experiment(n_epochs=5, eval_every=2, eval_train=True, quiet=True), []
    fedalg.run_rounds(run, [rows.append])
    assert [row["epoch"] for row in rows if "test_accs" in row] == [2, 4, 5]
    for part in ("train", "val", "test"):
        loss, accuracy, (predictions, _) = evaluate(run, getattr(run.splits, part))
        assert (rows[-1][f"{part}_losses"], rows[-1][f"{part}_accs"]) == (loss, accuracy)
    assert torch.equal(run.history.judged[0], predictions)
    run.evaluator.bf16 = True
    assert 0 < abs(evaluate(run, run.splits.test)[0] - loss) < 0.1 * loss


def test_what_is_predicted_does_not_hang_on_how_many_images_are_taken_at_a_time(experiment, monkeypatch):
    run = experiment()
    at_once = run.evaluator.predict(run.server.theta, run.splits.test)
    monkeypatch.setattr(batches, "batch_size", lambda *_: 7)
    assert torch.allclose(run.evaluator.predict(run.server.theta, run.splits.test), at_once, atol=1e-5)
    assert len(at_once) == len(run.splits.test)


@pytest.mark.parametrize(("side", "n"), [(32, 2048), (64, 512), (4096, 1)])
def test_a_gpu_evaluates_as_many_pixels_at_a_time_whatever_their_images(side, n):
    images = datasets.Images(torch.empty(9, 3, side, side, device="meta"), torch.empty(9, device="meta"))
    assert datasets.batch_size(images) == n
    small = datasets.Images(images.images[..., :8, :8], images.labels)
    assert datasets.batch_size(small, image_size=side) == n


@pytest.mark.parametrize(("side", "n"), [(8, 512), (32, 128), (64, 32), (512, 1)])
@pytest.mark.parametrize("threads", [1, 64])
def test_a_cpu_evaluates_as_many_pixels_at_a_time_however_many_threads_it_has(side, n, threads, monkeypatch):
    images = datasets.Images(torch.empty(1, 3, side, side), torch.empty(1))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert datasets.batch_size(images) == n
