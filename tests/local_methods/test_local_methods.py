"""The local methods against slow twins: dicts of tensors, autograd, torch.optim; and against each other."""

import copy
import itertools

import numpy
import pytest
import torch
import torch.nn.functional as F
from conftest import flat_state
from hypothesis import given
from hypothesis import strategies as st

from fedmerge import datasets
from fedmerge.algorithms.fedprox import FedProx
from fedmerge.local_methods.base import LocalMethod, hold_out
from fedmerge.local_methods.decorr import mean_square_correlation
from fedmerge.local_methods.lss import LocalSuperiorSoups
from fedmerge.local_methods.swad import low_stretch
from fedmerge.randomness import generator, round_half_up
from fedmerge.registry import LOCAL_METHODS
from fedmerge.simulation.experiment import build_module


def trained(run, number=1, round=1):
    return run.clients.trainer.client(number, round).train(run.server.theta).clone()


def twin_batches(run, client, epochs, *model):
    """The batches of one run, at most --local_steps of them."""
    rng = generator(run.settings.seed, "batches", client.round, client.id, *model)
    found = datasets.client_batches(run.splits, client.indices, run.settings.batch_size, epochs, rng)
    return itertools.islice(found, run.settings.local_steps)


# --------------------------------------------------------------------------------------------------------------------
# Local Superior Soups


def lss(**options):
    return LocalSuperiorSoups(**options)


@given(st.integers(1, 5), st.sampled_from([0.0, 1.0, 3.0]), st.sampled_from([0.0, 2.0, 3.0]), st.integers(0, 2**31))
def test_the_gradient_of_the_distances_equals_autograd(models, affinity, diversity, seed):
    rng = torch.Generator().manual_seed(seed)
    moves = torch.randn(models, 40, generator=rng, dtype=torch.float64)
    weights = lss(aff_coeff=affinity, div_coeff=diversity)._distance_weights(moves, moves[:-1].square().sum(1))
    new = moves[-1].clone().requires_grad_()
    others = [torch.zeros(40, dtype=torch.float64), *moves[:-1]]
    distances = [(new - other).norm() for other in others]
    (affinity * distances[0] - diversity * sum(distances) / len(distances)).backward()
    assert torch.allclose(weights @ moves, new.grad, rtol=1e-9, atol=1e-12)


def test_where_models_are_the_same_their_distance_has_gradient_zero():
    method = lss()
    moves = torch.zeros(1, 8)
    assert torch.equal(method._distance_weights(moves, torch.zeros(0)) @ moves, torch.zeros(8))
    moves = torch.randn(8).expand(3, 8).clone()  # three times the same, away from the start
    gradient = method._distance_weights(moves, moves[:-1].square().sum(1)) @ moves
    assert torch.allclose(gradient, (3 - 3 / 3) * moves[0] / moves[0].norm())


def twin_lss(run, client):
    """The client step of Algorithm 1 on dicts of tensors, the regularised loss left to autograd; no buffers."""
    a, module = run.settings, build_module(run.settings, run.splits)
    pool = [{name: p.detach().clone() for name, p in module.named_parameters()}]

    def average(models):
        return {name: sum(m[name] for m in models) / len(models) for name in pool[0]}

    def distance(one, other):
        total = sum((one[name] - other[name]).square().sum() for name in one)
        return total.sqrt() if total > 0 else 0 * total

    for i in range(1, a.n_verts + 1):
        new = {name: t.requires_grad_() for name, t in average(pool).items()}
        optimiser = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[a.local_optimizer]
        more = {"momentum": a.momentum} if a.local_optimizer == "sgd" else {}
        optimiser = optimiser(list(new.values()), lr=a.lr, weight_decay=a.weight_decay, **more)
        batches = list(twin_batches(run, client, a.soup_epochs, *([i - 1] if i > 1 else [])))
        rng = generator(a.seed, "interpolation", client.round, client.id, i)
        batches = batches[: max(1, round_half_up(a.later_share * len(batches)))] if i > 1 else batches
        draws = torch.rand(len(batches), i + 1, generator=rng)
        for (x, y), draw in zip(batches, draws, strict=True):
            shares = draw / draw.sum()
            point = {name: sum(c * m[name] for c, m in zip(shares, [*pool, new], strict=True)) for name in new}
            loss = F.cross_entropy(torch.func.functional_call(module, point, (x,)), y)
            others = sum(distance(new, other) for other in pool) / len(pool)
            loss = loss + a.aff_coeff * distance(new, pool[0]) - a.div_coeff * others
            optimiser.zero_grad()
            loss.backward()
            if a.clip_norm:
                torch.nn.utils.clip_grad_norm_(list(new.values()), a.clip_norm)
            optimiser.step()
        pool.append({name: t.detach() for name, t in new.items()})
    counted = pool if a.average_received else pool[1:]
    return torch.cat([t.flatten() for t in average(counted).values()])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"average_received": False, "aff_coeff": 1.0},
        {"local_optimizer": "adam", "lr": 1e-4, "weight_decay": 5e-4, "div_coeff": 2.0},
        {"clip_norm": 1.0, "weight_decay": 0.01},
        {"later_share": 0.4},
    ],
    ids=str,
)
def test_a_client_step_of_lss_equals_its_twin(experiment, settings):
    """Four models of five steps each."""
    run = experiment(local="lss", local_steps=5, **{"lr": 0.01, **settings})
    client = run.clients.trainer.client(1, 3)
    flat = client.train(run.server.theta)
    twin = twin_lss(run, client)
    assert (flat - run.server.theta).abs().max() > 1e-5
    apart = (flat - twin).abs() > 1e-6
    # Adam makes a whole step of a gradient that is 0 but for rounding.
    assert apart.sum() <= (1e-4 * len(flat) if "local_optimizer" in settings else 0)
    assert client.seen == 81 * 4 if "later_share" not in settings else 81 + 3 * 32  # one left over joins the last batch


def test_lss_with_one_model_and_nothing_added_is_fedavg(experiment):
    plain = trained(experiment(n_client_epochs=2))
    nothing = {"aff_coeff": 0.0, "div_coeff": 0.0, "interpolate": False, "average_received": False}
    soup = trained(experiment(local="lss", n_verts=1, soup_epochs=2, **nothing))
    assert torch.allclose(soup, plain, atol=1e-6)


def test_lss_averages_batchnorm_statistics_of_the_pool_or_measures_them(experiment):
    run = experiment(local="lss", norm="batch", n_verts=2, soup_epochs=1)
    n = run.model.layout.n_trainable
    averaged = trained(run)
    measured = trained(experiment(local="lss", norm="batch", n_verts=2, soup_epochs=1, bn_recalibrate=True))
    assert torch.equal(averaged[:n], measured[:n])
    assert not torch.allclose(averaged[n:], measured[n:], rtol=0.01)
    module = build_module(run.settings, run.splits)
    run.model.load(measured)
    module.load_state_dict(run.model.module.state_dict())
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # the plain mean over all batches
    rng = generator(0, "recalibrate", 1, 1)
    for x, _ in datasets.client_batches(run.splits, run.clients.parts[1], run.settings.batch_size, 1, rng):
        module(x)
    assert torch.allclose(flat_state(module)[n:], measured[n:], atol=1e-5)


def test_affinity_holds_models_near_and_diversity_drives_them_apart(experiment):
    def moved(**options):
        run = experiment(local="lss", n_verts=2, soup_epochs=2, average_received=False, lr=0.01, **options)
        return (trained(run) - run.server.theta).norm()

    assert (
        moved(aff_coeff=3.0, div_coeff=0.0) < moved(aff_coeff=0.0, div_coeff=0.0) < moved(aff_coeff=0.0, div_coeff=3.0)
    )


# --------------------------------------------------------------------------------------------------------------------
# The others


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_adam_is_that_of_torch(experiment, clip_norm):
    run = experiment(local_optimizer="adam", lr=1e-3, weight_decay=5e-4, clip_norm=clip_norm)
    module = build_module(run.settings, run.splits)
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3, weight_decay=5e-4)
    client = run.clients.trainer.client(1, 1)
    for x, y in twin_batches(run, client, 1):
        optimiser.zero_grad()
        F.cross_entropy(module(x), y).backward()
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
        optimiser.step()
    assert (client.train(run.server.theta) - flat_state(module)).abs().max() < 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {"algorithm": "swa", "swa_start": 0.99},
        {"algorithm": "soups", "n_verts": 1, "soup_epochs": 2, "soup_selection": "uniform"},
        {"algorithm": "diwa", "n_verts": 1, "soup_epochs": 2, "probe_epochs": 0},
        {"algorithm": "moon", "moon_mu": 0.0},
        {"algorithm": "fedntd", "ntd_beta": 0.0},
        {"algorithm": "feddecorr", "decorr_beta": 0.0},
        {"algorithm": "fedsam", "sam_rho": 0.0},
        {"algorithm": "las", "local": "sgd"},
    ],
    ids=str,
)
def test_with_nothing_of_its_own_a_method_is_fedavg(experiment, settings):
    if "soup_epochs" not in settings:
        settings = {**settings, "n_client_epochs": 2}
    assert torch.equal(trained(experiment(**settings)), trained(experiment(n_client_epochs=2)))


def ends_of_epochs(run, epochs):
    """The models [epochs, dim] at the end of each epoch of plain training."""
    client, ends = run.clients.trainer.client(1, 1), []
    client.model.load(run.server.theta)
    per_epoch = client.steps_of(1)
    for step, _ in enumerate(LocalMethod().run(client, epochs), 1):
        if step % per_epoch == 0:
            ends.append(client.model.vector.clone())
    return torch.stack(ends)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_swa_is_the_mean_of_the_last_epochs(experiment, norm):
    run = experiment(algorithm="swa", n_client_epochs=4, swa_start=0.5, norm=norm)
    assert torch.allclose(trained(run), ends_of_epochs(run, 4)[2:].mean(0), atol=1e-6)


def test_swa_of_fewer_steps_than_an_epoch_is_the_last_model(experiment):
    stopped = {"n_client_epochs": 2, "local_steps": 2}
    assert torch.allclose(
        trained(experiment(algorithm="swa", swa_start=0.5, **stopped)), trained(experiment(**stopped))
    )


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([5, 4, 3, 2, 1], (4, 5)),  # falls to the end: no stretch, the last model
        ([5, 3, 4, 4, 4, 4], (1, 6)),  # the lowest of three from 1 on, and never too high
        ([5, 3, 4, 4, 9, 9, 9], (1, 4)),  # above 1.3 * 11/3 from 4 on
        ([5, 3, 4, 4, 9, 9, 4], (1, 7)),  # not for three in a row
        ([1, 2, 2, 9, 9, 9, 1], (0, 3)),
    ],
)
def test_the_low_stretch_of_swad_by_hand(losses, expected):
    assert low_stretch(losses, 3, 3, 1.3) == expected


@pytest.mark.parametrize(("wait", "tolerance"), [(2, 1.3), (1, 100.0)])  # the latter: all steps, of 3, 3, 3 and 2
def test_swad_is_the_mean_of_every_step_of_the_stretch(experiment, wait, tolerance):
    settings = {"swad_wait": wait, "swad_patience": 2, "swad_tolerance": tolerance, "local_steps": 11}
    run = experiment(algorithm="swad", n_client_epochs=3, swad_evaluations=5, **settings)
    client = run.clients.trainer.client(1, 1)
    train, held = hold_out(client, 0.1)
    models, losses = [], []
    client.model.load(run.server.theta)
    for _ in LocalMethod().run(client, 3, indices=train):
        models.append(client.model.vector.clone())
    every = -(-len(models) // 5)
    ends = sorted({*range(every, len(models), every), len(models)})
    for end in ends:
        client.model.load(models[end - 1])
        x, y = run.splits.normalise(run.splits.train.images[held]), run.splits.train.labels[held]
        losses.append(F.cross_entropy(client.model.module(x), y).item())
    begin, end = low_stretch(losses, wait, 2, tolerance)
    first = 0 if begin == 0 else ends[begin - 1]
    assert torch.allclose(trained(run), torch.stack(models[first : ends[end - 1]]).mean(0), atol=1e-6)


def test_what_is_held_out_is_never_trained_on_and_stays_the_same(experiment):
    run = experiment()
    for number in range(3):
        client = run.clients.trainer.client(number, 1)
        train, held = hold_out(client, 0.1)
        assert len(held) == round(0.1 * client.n_samples)
        assert sorted([*train.tolist(), *held.tolist()]) == sorted(client.indices.tolist())
        assert torch.equal(held, hold_out(run.clients.trainer.client(number, 7), 0.1)[1])
    client.n_samples, client.indices = 1, client.indices[:1]
    assert all(torch.equal(part, client.indices) for part in hold_out(client, 0.5))


def test_soups_vary_their_settings_and_uniform_ones_average_them_all(experiment):
    settings = {"n_verts": 3, "soup_epochs": 1, "weight_decay": 0.01}
    run = experiment(algorithm="soups", soup_selection="uniform", **settings)
    client, method = run.clients.trainer.client(1, 1), run.clients.trainer.local
    varied = [method._vary(client, i) for i in range(3)]
    assert varied[0] == client.settings
    assert len({(s.lr, s.weight_decay) for s in varied}) == 3
    assert all(0.05 / 3 <= s.lr <= 0.15 and 0.01 / 3 <= s.weight_decay <= 0.03 for s in varied)
    models = []
    for i, s in enumerate(varied):
        module = build_module(run.settings, run.splits)
        optimiser = torch.optim.SGD(module.parameters(), lr=s.lr, momentum=0.9, weight_decay=s.weight_decay)
        for x, y in twin_batches(run, client, 1, *([i] if i else [])):
            optimiser.zero_grad()
            F.cross_entropy(module(x), y).backward()
            optimiser.step()
        models.append(flat_state(module))
    assert torch.allclose(trained(run), sum(models) / 3, atol=1e-5)


def test_the_greedy_soup_takes_what_does_not_raise_the_loss(experiment, monkeypatch):
    """Losses by hand: a model [v, v, ...] has loss |v - 3|."""
    run = experiment(algorithm="soups")
    client = run.clients.trainer.client(1, 1)
    monkeypatch.setattr(client, "mean_loss", lambda held: (client.model.vector.mean() - 3).abs())
    models = torch.tensor([0.0, 2.0, 4.5, 9.0])[:, None].expand(4, run.model.layout.dim)
    # From 2 (loss 1): with 4.5 it is 3.25 (0.25); with 0 as well 2.17, with 9 as well 5.17: neither helps.
    assert torch.allclose(run.clients.trainer.local._pick(client, models, None), torch.tensor(3.25))


def test_diwa_trains_the_head_alone_before_its_models_part(experiment):
    run = experiment(algorithm="diwa", n_verts=1, probe_epochs=2, soup_epochs=1)
    client, n_head = run.clients.trainer.client(1, 1), 512 * 10 + 10
    client.model.load(run.server.theta)
    start = run.clients.trainer.local._probe(client)
    assert torch.equal(start[:-n_head], run.server.theta[:-n_head])
    assert (start - run.server.theta)[-n_head:].norm() > 0.01
    client.model.load(start)
    for _ in LocalMethod().run(client, 1):
        pass
    assert torch.equal(trained(run), client.model.vector)


def test_moon_equals_its_twin(experiment):
    run = experiment(algorithm="moon", moon_mu=2.0, norm="batch", n_client_epochs=1)
    first = trained(run, round=1)  # nobody has a last model yet
    assert torch.allclose(first, trained(experiment(norm="batch")), atol=1e-6)
    second = run.clients.trainer.client(1, 2).train(run.server.theta).clone()

    def network(vector):
        module = build_module(run.settings, run.splits)
        run.model.load(vector)
        module.load_state_dict(run.model.module.state_dict())
        return module

    module, received, last = network(run.server.theta), network(run.server.theta).eval(), network(first).eval()
    optimiser = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    for x, y in twin_batches(run, run.clients.trainer.client(1, 2), 1):
        with torch.no_grad():
            towards, away = received[:-1](x), last[:-1](x)
        own = module[:-1](x)
        a, b = (torch.exp(F.cosine_similarity(own, other) / 0.5) for other in (towards, away))
        loss = F.cross_entropy(module[-1](own), y) - 2.0 * torch.log(a / (a + b)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert (second - flat_state(module)).abs().max() < 1e-5
    assert (
        second - run.clients.trainer.client(1, 2).train(run.server.theta)
    ).abs().max() > 1e-4  # now its last model is another


def test_moon_takes_back_what_it_kept(experiment):
    run = experiment(algorithm="moon")
    trained(run)
    other = LOCAL_METHODS["moon"]()
    other.load_state_dict(run.clients.trainer.local.state_dict())
    assert torch.equal(other.last[1], run.clients.trainer.local.last[1])


def test_the_correction_of_fedprox_acts_in_a_soup(experiment):
    few = {"local": "lss", "n_verts": 2, "soup_epochs": 2, "aff_coeff": 0.0, "div_coeff": 0.0, "algorithm": "fedprox"}

    def moved(mu):
        run = experiment(prox_momentum=mu, **few)
        client = run.clients.trainer.client(1, 1)
        return (client.train(run.server.theta, run.server.algorithm.gradient_correction) - run.server.theta).norm()

    assert moved(5.0) < 0.7 * moved(0.0)


def twin(run, loss, n_steps=3):
    """What plain steps of SGD make of the received model, with a loss (module, x, y) of the working one."""
    module, client = build_module(run.settings, run.splits), run.clients.trainer.client(1, 1)
    optimiser = torch.optim.SGD(module.parameters(), lr=run.settings.lr, momentum=run.settings.momentum)
    for x, y in itertools.islice(twin_batches(run, client, 1), n_steps):
        optimiser.zero_grad()
        loss(module, x, y).backward()
        optimiser.step()
    return flat_state(module)


def test_not_true_distillation_by_its_formula(experiment):
    """KL of softmaxes over the nine other classes, written out image by image."""
    run = experiment(algorithm="fedntd", ntd_beta=2.0, ntd_tau=0.5, local_steps=3, weight_decay=0.0)
    received = build_module(run.settings, run.splits)

    def loss(module, x, y):
        logits, before, away = module(x), received(x).detach(), 0.0
        for own, other, label in zip(logits, before, y.tolist(), strict=True):
            rest = [c for c in range(10) if c != label]
            q, p = ((row[rest] / 0.5).exp() / (row[rest] / 0.5).exp().sum() for row in (own, other))
            away = away + sum(p[k] * (p[k] / q[k]).log() for k in range(9))
        return F.cross_entropy(logits, y) + 2.0 * away / len(y)

    assert torch.allclose(trained(run), twin(run, loss), atol=1e-5)


@pytest.mark.parametrize(("n", "d"), [(7, 3), (4, 9)])
def test_the_decorrelation_is_the_mean_square_of_numpys_correlations(n, d):
    features = torch.randn(n, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
    expected = (numpy.corrcoef(features.numpy().T) ** 2).mean()
    assert mean_square_correlation(features).item() == pytest.approx(expected, rel=1e-6)
    assert mean_square_correlation(torch.ones(n, d)) == 0  # features that never change are not correlated


def test_decorrelated_features_enter_the_last_layer(experiment):
    run = experiment(algorithm="feddecorr", decorr_beta=5.0, local_steps=3, weight_decay=0.0)

    def loss(module, x, y):
        features = module[:-1](x)
        covariance = torch.cov(features.T)
        deviation = (covariance.diag() + 1e-8).sqrt()  # of features that hardly vary, as of those that do not
        together = (covariance / torch.outer(deviation, deviation)).square().mean()
        return F.cross_entropy(module[-1](features), y) + 5.0 * together

    assert torch.allclose(trained(run), twin(run, loss), atol=1e-4)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_sharpness_aware_steps_are_those_of_a_copy_uphill(experiment, norm):
    """The gradient of a copy of the module that was moved; BatchNorm's statistics are those of the module itself."""
    run = experiment(algorithm="fedsam", sam_rho=0.3, local_steps=3, norm=norm, weight_decay=0.0)

    def loss(module, x, y):
        uphill = copy.deepcopy(module)
        gradients = torch.autograd.grad(F.cross_entropy(module(x), y), list(module.parameters()))
        length = sum(g.square().sum() for g in gradients).sqrt()
        with torch.no_grad():
            for p, g in zip(uphill.parameters(), gradients, strict=True):
                p += 0.3 * g / length
        there = torch.autograd.grad(F.cross_entropy(uphill(x), y), list(uphill.parameters()))
        return sum((p * g).sum() for p, g in zip(module.parameters(), there, strict=True))  # whose gradient is g

    assert torch.allclose(trained(run), twin(run, loss), atol=1e-5)


def test_what_a_server_adds_to_sharpness_aware_steps_is_that_at_the_weights(experiment):
    """A pull to the received model that is 0 there: with one step nothing but a move uphill would show it."""
    settings = {"local": "sam", "sam_rho": 0.3, "local_steps": 1}
    free, run = (experiment(algorithm=name, **settings) for name in ("fedavg", "fedprox"))
    pull = FedProx(run.server.layout, prox_momentum=5.0).gradient_correction
    pulled = run.clients.trainer.client(1, 1).train(run.server.theta, pull)
    assert torch.equal(pulled, trained(free))
