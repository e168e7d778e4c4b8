"""LSS within FedAvg's steps, and as its code was published, against slow twins on dicts of tensors."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from test_local_methods import trained, twin_batches

from fedmerge.config.resolve import resolve
from fedmerge.local_methods.lss_budget import LSSBudget
from fedmerge.local_methods.lss_published import volume_gradient
from fedmerge.randomness import generator
from fedmerge.simulation.experiment import build_module

VARIANTS = ("lss_budget", "lss_published")


def cayley_menger(models):
    """The squared volume of a simplex by its distances, as it is found in books."""
    n = len(models)
    table = torch.ones(n + 1, n + 1, dtype=models.dtype)
    table[0, 0] = 0
    table[1:, 1:] = (models[:, None] - models[None]).square().sum(2)
    return (-1) ** n * torch.linalg.det(table) / (2 ** (n - 1) * math.factorial(n - 1) ** 2)


@given(st.integers(2, 5), st.integers(0, 2**31))
def test_the_gradient_of_the_volume_equals_autograd(n, seed):
    models = torch.randn(n, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    new = models[-1].clone().requires_grad_()
    cayley_menger(torch.cat([models[:-1], new[None]])).backward()
    torch.testing.assert_close(volume_gradient(models), new.grad, rtol=1e-6, atol=1e-9)


def test_the_volume_by_hand():
    models = torch.tensor([[0.0, 0.0], [3.0, 0.0], [1.0, 2.0]])  # a triangle of area 3: V^2 = 9 at height 2, 9/4 h^2
    assert cayley_menger(models).item() == pytest.approx(9)
    torch.testing.assert_close(volume_gradient(models), torch.tensor([0.0, 9.0]))
    torch.testing.assert_close(volume_gradient(models[:2]), torch.tensor([6.0, 0.0]))  # of a squared length


def test_models_that_are_in_one_place_are_not_pushed_apart():
    models = torch.ones(3, 4)
    models[2] += 1e-3
    assert volume_gradient(models).isfinite().all()
    assert volume_gradient(torch.ones(4, 5)).eq(0).all()


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("local", VARIANTS)
def test_a_pool_of_one_with_nothing_added_is_fedavg(experiment, local, norm, optimiser):
    common = {"norm": norm, "local_optimizer": optimiser, "lr": 1e-3}
    plain = trained(experiment(n_client_epochs=2, **common))
    epochs = {"soup_epochs": 2} if local == "lss_published" else {"n_client_epochs": 2}
    pool = trained(experiment(local=local, n_verts=1, affinity=0.0, **epochs, **common))
    assert torch.equal(pool, plain)


@given(st.integers(1, 9), st.floats(0.01, 1.0), st.integers(1, 200))
def test_the_models_take_as_many_steps_as_fedavg(n_verts, first_share, total):
    method = LSSBudget(n_verts=n_verts, first_share=first_share)
    method.n_steps = lambda client, epochs: total
    client = type("Client", (), {"settings": type("Settings", (), {"epochs": 1})})
    steps = method.budget(client)
    assert len(steps) == n_verts
    assert sum(steps) == total
    assert min(steps) >= 0
    assert steps[0] >= 1
    if n_verts > 1:
        assert steps[0] == max(1, math.floor(first_share * total + 0.5))
        assert max(steps[1:]) - min(steps[1:]) <= 1


def twin(run, client):
    """A client's round on dicts of tensors, all of the loss left to autograd; no buffers."""
    a, module = run.settings, build_module(run.settings, run.splits)
    received = {name: p.detach().clone() for name, p in module.named_parameters()}
    published = a.local == "lss_published"
    if published:
        counts = [len(list(twin_batches(run, client, a.soup_epochs)))]
        counts += [max(1, len(list(twin_batches(run, client, 1))) // 15)] * (a.n_verts - 1)
    else:
        counts = {3: [6, 1, 1], 4: [6, 0, 1, 1]}[a.n_verts]  # of eight steps
    pool = []
    for i, count in enumerate(counts):
        mean = {name: sum(m[name] for m in pool) / len(pool) for name in received} if pool else received
        new = {name: t.clone().requires_grad_() for name, t in mean.items()}
        kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[a.local_optimizer]
        more = {"momentum": a.momentum} if a.local_optimizer == "sgd" else {}
        optimiser = kind(list(new.values()), lr=a.lr, weight_decay=0.0 if published else a.weight_decay, **more)
        epochs = a.soup_epochs if published else a.n_client_epochs
        batches = list(twin_batches(run, client, epochs, *([i] if i else [])))[:count]
        shares = -torch.rand(count, i + 1, generator=generator(a.seed, "interpolation", 3, client.id, i)).log()
        for (x, y), draw in zip(batches, shares, strict=True):
            draw = draw / draw.sum()
            point = {name: sum(c * m[name] for c, m in zip(draw, [*pool, new], strict=True)) for name in new}
            loss = F.cross_entropy(torch.func.functional_call(module, point if i else new, (x,)), y)
            loss = loss + a.affinity * sum((new[name] - received[name]).square().sum() for name in new)
            if published and i:
                flat = [torch.cat([t.flatten() for t in m.values()]) for m in [*pool, new]]
                edges = torch.stack([m - flat[0] for m in flat[1:]])
                loss = loss - a.diversity * torch.linalg.det(edges @ edges.t()) / math.factorial(i) ** 2
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        pool.append({name: t.detach() for name, t in new.items()})
    return torch.cat([(sum(m[name] for m in pool) / len(pool)).flatten() for name in received])


@pytest.mark.parametrize(
    "settings",
    [
        {"local": "lss_budget"},
        {"local": "lss_budget", "affinity": 1.0, "weight_decay": 0.01, "n_verts": 3},
        {"local": "lss_budget", "local_optimizer": "adam", "lr": 1e-4},
        {"local": "lss_published", "weight_decay": 0.5, "affinity": 0.1},
        {"local": "lss_published", "diversity": 0.1, "n_verts": 3},
    ],
    ids=str,
)
def test_a_client_step_equals_its_twin(experiment, settings):
    epochs = {} if settings["local"] == "lss_published" else {"n_client_epochs": 2}
    run = experiment(local_steps=8, **{"lr": 0.01, **epochs, **settings})
    client = run.clients.trainer.client(1, 3)
    flat = client.train(run.server.theta)
    assert (flat - run.server.theta).abs().max() > 1e-5
    apart = (flat - twin(run, client)).abs() > 1e-6
    assert apart.sum() <= (1e-4 * len(flat) if "local_optimizer" in settings else 0)


def test_the_received_model_and_its_buffers_are_no_part_of_the_average(experiment):
    run = experiment(local="lss_budget", norm="batch", n_verts=2, n_client_epochs=1, affinity=0.0)
    n, client = run.model.layout.n_trainable, run.clients.trainer.client(1, 1)
    seen = []
    measured = client.local.pooled
    client.local.pooled = lambda buffers: seen.append(buffers.clone()) or measured(buffers)
    end = client.train(run.server.theta)
    assert [len(buffers) for buffers in seen] == [1, 2]
    torch.testing.assert_close(end[n:], seen[-1].mean(0))


def test_the_rows_of_lss_stand_for_their_local_methods():
    flags = [{}, {"preset": "paper"}, {"preset": "published"}]
    found = [resolve({"algorithm": "lss", **more}) for more in flags]
    assert [args.local for args in found] == ["lss_budget", "lss", "lss_published"]
    assert {(args.local_optimizer, args.lr) for args in found} == {("adam", 5e-4)}
    assert resolve({"algorithm": "lss", "local_optimizer": "sgd"}).lr == 0.01
