"""A client's local work against plain PyTorch: modules, autograd, torch.optim, one tensor at a time."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import flat_state

from fedmerge import datasets
from fedmerge.local_training.trainer import Trainer
from fedmerge.randomness import generator
from fedmerge.simulation.experiment import build_module


def plain_sgd(run, number, round=1, penalty=None):
    """Train client `number` from the server's model by torch.optim.SGD on a module of its own; return its state."""
    args = run.settings
    module = build_module(args, run.splits)
    begin = [p.detach().clone() for p in module.parameters()]
    optimiser = torch.optim.SGD(
        module.parameters(),
        lr=args.lr * args.lr_decay ** (round - 1),
        momentum=args.momentum,
        weight_decay=args.weight_decay,
    )
    rng = generator(args.seed, "batches", round, number)
    batches = datasets.client_batches(run.splits, run.clients.parts[number], args.batch_size, args.n_client_epochs, rng)
    losses, hits = [], 0
    for x, y in batches:
        logits = module(x)
        loss = F.cross_entropy(logits, y)
        losses.append(loss.item() * len(y))
        hits += (logits.argmax(1) == y).sum().item()
        if penalty is not None:
            loss = loss + penalty(list(module.parameters()), begin)
        optimiser.zero_grad()
        loss.backward()
        if args.clip_norm:
            torch.nn.utils.clip_grad_norm_(module.parameters(), args.clip_norm)
        optimiser.step()
    return flat_state(module), sum(losses), hits


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"momentum": 0.0},
        {"weight_decay": 0.01},
        {"clip_norm": 0.5},
        {"clip_norm": 0.5, "weight_decay": 0.01},
        {"norm": "batch"},
        {"norm": "group", "dirichlet": 0.5},
        {"lr_decay": 0.5},
    ],
    ids=str,
)
def test_training_equals_torch_sgd(experiment, settings):
    run = experiment(n_client_epochs=3, **settings)
    client = run.clients.trainer.client(4, round=3)
    trained = client.train(run.server.theta)
    expected, loss, hits = plain_sgd(run, 4, round=3)
    moved = (expected - run.server.theta).norm()
    assert moved > 0.1
    assert (trained - expected).norm() < 1e-5 * moved
    assert client.loss.item() == pytest.approx(loss, rel=1e-5)
    assert client.hits.item() == hits
    assert client.seen == 3 * client.n_samples


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_the_correction_of_fedprox_is_the_gradient_of_its_penalty(experiment, clip_norm):
    """FedProx written with autograd: loss + mu / 2 |w - start|^2."""
    run = experiment(algorithm="fedprox", prox_momentum=0.3, n_client_epochs=3, clip_norm=clip_norm)

    def penalty(now, begin):
        return 0.15 * sum((a - b).square().sum() for a, b in zip(now, begin, strict=True))

    trained = run.clients.trainer.client(2, 1).train(run.server.theta, run.server.algorithm.gradient_correction)
    expected, _, _ = plain_sgd(run, 2, penalty=penalty)
    without, _, _ = plain_sgd(run, 2)
    assert (trained - expected).norm() < 1e-3 * (without - expected).norm()


def test_a_client_trains_the_same_whoever_trained_before(experiment):
    run = experiment(norm="batch")
    alone = run.clients.trainer.client(7, 2).train(run.server.theta).clone()
    run.clients.trainer.client(3, 2).train(run.server.theta)
    assert torch.equal(run.clients.trainer.client(7, 2).train(run.server.theta), alone)
    assert not torch.equal(
        run.clients.trainer.client(7, 3).train(run.server.theta), alone
    )  # another round, another order


def test_the_seed_and_the_clients_number_decide_the_order_of_its_samples(experiment):
    run = experiment()
    orders = []
    for seed, number in ((0, 1), (1, 1), (0, 2), (0, 1)):
        settings = replace(run.clients.trainer.settings, seed=seed)
        trainer = Trainer(run.model, run.splits, [run.clients.parts[1]] * 3, settings)  # the same samples for everybody
        orders.append(trainer.client(number, 1).train(run.server.theta).clone())
    assert torch.equal(orders[0], orders[3])
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


def test_the_start_is_not_changed(experiment):
    run = experiment(norm="batch")
    before = run.server.theta.clone()
    run.clients.trainer.client(0, 1).train(run.server.theta)
    assert torch.equal(run.server.theta, before)


def twin_mask(run, client, delta, mask, epochs, lr, bias, l1_strength):
    """Mask learning with autograd through functional_call, tensor by tensor."""
    module, layout = build_module(run.settings, run.splits), run.model.layout
    start = dict(module.named_parameters())
    change = dict(zip(layout.names, delta[: layout.n_trainable].split(layout.sizes), strict=True))
    logits = {
        name: torch.where(m, bias, -bias).requires_grad_()
        for name, m in zip(layout.names, mask.split(layout.sizes), strict=True)
    }
    rng = generator(run.settings.seed, "mask", client.round, client.id)
    for x, y in datasets.client_batches(run.splits, client.indices, run.settings.batch_size, epochs, rng):
        soft = {name: logit.sigmoid() for name, logit in logits.items()}
        weights = {n: start[n].detach() + (soft[n] * change[n]).view_as(start[n]) for n in layout.names}
        loss = lr * F.cross_entropy(torch.func.functional_call(module, weights, (x,)), y)
        loss = loss + l1_strength * sum(s.sum() for s in soft.values())
        for logit, gradient in zip(logits.values(), torch.autograd.grad(loss, list(logits.values())), strict=True):
            logit.data -= gradient
    return torch.cat([logit.sigmoid().round().bool() for logit in logits.values()])


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_mask_learning_equals_its_twin_and_changes_the_mask(experiment, norm):
    run = experiment(algorithm="las", n_client_epochs=3, norm=norm)
    client = run.clients.trainer.client(1, 1)
    delta = client.train(run.server.theta) - run.server.theta
    mask = delta[: run.model.layout.n_trainable].abs() > 0.003
    learning = {"epochs": 3, "lr": 1e5, "bias": 2.0, "l1_strength": 0.5}
    learned = client.learn_mask(run.server.theta, delta, mask, **learning)
    expected = twin_mask(run, client, delta, mask, **learning)
    assert (learned != mask).sum() > 100
    assert (learned != expected).sum() <= 1e-4 * len(mask)  # logits within rounding of 0 may fall either way


def test_a_strong_l1_pull_empties_the_mask_and_none_without_gradient_keeps_it(experiment):
    run = experiment(algorithm="las")
    client = run.clients.trainer.client(1, 1)
    mask = torch.arange(run.model.layout.n_trainable) % 3 == 0
    still = torch.zeros_like(run.server.theta)  # no change: the loss does not depend on the mask
    keep = client.learn_mask(run.server.theta, still, mask, epochs=2, lr=1.0, bias=5.0, l1_strength=0.0)
    assert torch.equal(keep, mask)
    drop = client.learn_mask(run.server.theta, still, mask, epochs=5, lr=1.0, bias=1.0, l1_strength=5.0)
    assert not drop.any()


def test_mask_logits_that_overflow_show_in_the_loss(experiment):
    """A NaN logit is not > 0, so its weight would silently not be sent."""
    run = experiment(algorithm="las")
    client = run.clients.trainer.client(1, 1)
    delta = client.train(run.server.theta) - run.server.theta
    mask = torch.ones(run.model.layout.n_trainable, dtype=torch.bool)
    client.learn_mask(run.server.theta, delta, mask, epochs=1, lr=1e4, bias=5.0, l1_strength=0.0)
    assert torch.isfinite(client.loss)
    client.learn_mask(run.server.theta, 1e20 * delta, mask, epochs=3, lr=3e38, bias=5.0, l1_strength=0.0)
    assert not torch.isfinite(client.loss)


def test_bf16_training_stays_near_float32(experiment):
    trained = {}
    for precision in ("float32", "bf16"):
        run = experiment(precision=precision)
        trained[precision] = run.clients.trainer.client(0, 1).train(run.server.theta).clone() - run.server.theta
    apart = (trained["bf16"] - trained["float32"]).norm() / trained["float32"].norm()
    assert 0 < apart < 0.1


@pytest.mark.gpu
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_no_step_waits_for_the_gpu(experiment, clip_norm):
    run = experiment(device="cuda", algorithm="fedprox", weight_decay=0.01, clip_norm=clip_norm, n_client_epochs=2)
    client = run.clients.trainer.client(1, 1)
    client.train(run.server.theta, run.server.algorithm.gradient_correction)  # warms up
    batches = list(client.batches(2, client.rng("batches")))
    client.batches = lambda *_: batches
    learning = {"epochs": 2, "lr": 1e5, "bias": 5.0, "l1_strength": 1.0}
    torch.cuda.set_sync_debug_mode("error")
    try:
        delta = client.train(run.server.theta, run.server.algorithm.gradient_correction) - run.server.theta
        client.learn_mask(run.server.theta, delta, delta[: run.model.layout.n_trainable] > 0, **learning)
    finally:
        torch.cuda.set_sync_debug_mode("default")
