"""A head in closed form before the first round: against NumPy, however labels are shared out, and its bytes."""

import numpy as np
import pytest
import torch
from conftest import keep_two_rounds, train_round

from fedmerge.config.resolve import resolve
from fedmerge.errors import InputError
from fedmerge.networks.flat_model import head_of
from fedmerge.simulation.experiment import prepare
from fedmerge.simulation.head_start import WEIGHTS, HeadSettings, Told, fit_head, over
from fedmerge.simulation.run_state import resume
from fedmerge.wire import dense_bytes

FEW = {"n_clients": 6, "participation": 0.5, "model_name": "lenet", "image_size": 16, "local_steps": 1}


def head_layer(run):
    return run.model.module.get_submodule(head_of(run.model.module))


def weights_of(run, name="weight"):
    """The head's weights or biases in the server's model."""
    run.model.load(run.server.theta)
    return getattr(head_layer(run), name).detach().clone()


def features_of(run, images):
    """What the head is given of Images, [N, width], one image after the other."""
    seen, head = [], head_layer(run)
    hook = head.register_forward_pre_hook(lambda _, given: seen.append(given[0][0].clone()))
    run.model.module.eval()
    with torch.no_grad():
        for image in images.images:
            run.model.module(run.splits.normalise(image[None]))
    hook.remove()
    return torch.stack(seen).double().numpy()


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_class_means_are_those_of_all_samples(experiment):
    plain, run = experiment(**FEW), experiment(head_init="ncm", **FEW)
    features, labels = features_of(plain, plain.splits.train), plain.splits.train.labels.numpy()
    means = np.stack([features[labels == label].mean(0) for label in range(10)])
    np.testing.assert_allclose(weights_of(run), unit(means), atol=1e-5)
    assert not weights_of(run, "bias").any()


def test_least_squares_are_those_of_all_samples(experiment):
    plain, run = experiment(**FEW), experiment(head_init="ridge", head_ridge=0.05, **FEW)
    x, labels = features_of(plain, plain.splits.train), plain.splits.train.labels.numpy()
    width = x.shape[1]
    penalty = 0.05 * np.trace(x.T @ x) / width
    rows = np.vstack([x, np.sqrt(penalty) * np.eye(width)])
    classes = np.vstack([np.eye(10)[labels], np.zeros((width, 10))])
    expected = np.linalg.lstsq(rows, classes, rcond=None)[0].T
    np.testing.assert_allclose(weights_of(run), unit(expected), atol=2e-3)


def test_the_covariance_is_estimated_by_how_the_means_of_clients_differ(experiment):
    plain, run = experiment(**FEW), experiment(head_init="cof", head_ridge=0.05, **FEW)
    x, labels = features_of(plain, plain.splits.train), plain.splits.train.labels.numpy()
    within, means = np.zeros((84, 84)), []
    for label in range(10):
        parts = [x[part.numpy()][labels[part.numpy()] == label] for part in plain.clients.parts]
        n, mean = sum(map(len, parts)), np.concatenate(parts).mean(0)
        apart = [np.outer(part.mean(0) - mean, part.mean(0) - mean) * len(part) for part in parts if len(part)]
        within += n * sum(apart) / (len(apart) - 1)
        means.append(mean)
    within += 0.05 * np.trace(within) / 84 * np.eye(84)
    expected = np.stack([np.linalg.solve(within, mean) for mean in means])
    np.testing.assert_allclose(weights_of(run), unit(expected), atol=2e-3)


def test_of_many_clients_the_spread_of_means_tells_the_covariance():
    """Of features with the deviations 1, 2 and 3 in each of two classes."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 600, 5, 3, generator=g) * torch.tensor([1.0, 2, 3]) + torch.tensor([10.0, 20, 30])
    told = Told(2, 3)
    for i in range(600):
        told.add(HeadSettings("cof"), (x[:, i].sum(1), torch.full((2,), 5.0)), i)
    weights = WEIGHTS["cof"](told, 0.0)
    expected = torch.tensor([10.0, 20 / 4, 30 / 9]).double() / 6000  # samples of both classes
    torch.testing.assert_close(weights, expected.expand(2, 3), rtol=0.15, atol=0)


@pytest.mark.parametrize("kind", ["ncm", "ridge"])
def test_it_is_the_same_however_labels_are_shared_out(experiment, kind):
    heads = [weights_of(experiment(head_init=kind, **FEW | how)) for how in ({}, {"dirichlet": 0.1}, {"n_clients": 3})]
    for head in heads[1:]:
        torch.testing.assert_close(head, heads[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["ncm", "cof", "ridge"])
def test_all_else_begins_as_without_it(experiment, kind):
    plain, run = experiment(**FEW), experiment(head_init=kind, **FEW)
    changed = plain.server.theta != run.server.theta
    head = sum(p.numel() for p in head_layer(run).parameters())
    assert 0 < changed.sum() <= head
    assert changed[: run.model.layout.n_trainable - head].sum() == 0


@pytest.mark.parametrize("shared_init", [True, False])
@pytest.mark.parametrize(("kind", "more"), [("ncm", 0), ("cof", 0), ("ridge", 84 * 85 // 2)])
def test_its_bytes_are_in_the_first_round_and_are_of_all_clients(experiment, kind, more, shared_init):
    few = FEW | {"dirichlet": 0.1}
    plain = experiment(shared_init=shared_init, **few)
    run = experiment(head_init=kind, shared_init=shared_init, **few)
    first, second = train_round(plain), train_round(run)
    labels, down = run.splits.train.labels, dense_bytes(10 * 84)
    held = [len(labels[part].unique()) for part in run.clients.parts]
    up = [dense_bytes(84 * n + 10 + more) for n in held]
    assert len(set(held)) > 1
    assert [run.server.before[client][0] for client in range(6)] == up
    assert second["bytes_up"] == first["bytes_up"] + sum(up)
    whole = 0 if shared_init else dense_bytes(run.model.layout.dim)
    assert second["bytes_down"] == first["bytes_down"] - 3 * whole + 6 * (down + whole)
    run.history.add(second)
    assert set(run.server.traffic) == set(range(6))


@pytest.mark.parametrize(("bits", "atol"), [(16, 3e-4), (8, 0.01)])
def test_fewer_bits_make_nearly_the_same_head(experiment, bits, atol):
    exact, rounded = experiment(head_init="ncm", **FEW), experiment(head_init="ncm", head_bits=bits, **FEW)
    assert not torch.equal(weights_of(rounded), weights_of(exact))
    torch.testing.assert_close(weights_of(rounded), weights_of(exact), rtol=0, atol=atol)
    up = [sum(up for up, _ in run.server.before.values()) for run in (exact, rounded)]
    assert up[1] < up[0] * (bits + 4) / 32


def test_the_server_has_the_head_that_clients_get(experiment):
    assert len(weights_of(experiment(head_init="ncm", head_bits=4, **FEW)).unique()) <= 16


@pytest.mark.parametrize("bits", [32, 16, 4])
def test_real_bytes_say_the_same(experiment, bits):
    runs = [experiment(head_init="cof", head_bits=bits, wire=wire, **FEW) for wire in ("size", "real")]
    assert torch.equal(runs[0].server.theta, runs[1].server.theta)
    assert runs[0].server.before == runs[1].server.before


def test_what_is_rounded_is_right_on_average():
    sums, counts, told = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)), torch.ones(2), Told(2, 3)
    for client in range(4000):
        told.add(HeadSettings("ncm", bits=4), (sums, counts), client)
    assert (told.sums[0] - sums).abs().max() > 0.05
    torch.testing.assert_close((told.total / 4000).float(), sums, rtol=0, atol=0.02)


def test_a_class_without_samples_has_no_weights(experiment):
    run = experiment(head_init="ncm", **FEW)
    trainer, labels = run.clients.trainer, run.splits.train.labels
    trainer.parts = [part[labels[part] != 4] for part in trainer.parts]
    fit_head(HeadSettings("ncm"), trainer, run.server.theta)
    norms = weights_of(run).norm(dim=1)
    assert norms[4] == 0
    torch.testing.assert_close(norms[torch.arange(10) != 4], torch.ones(9))


@pytest.mark.slow
def test_it_knows_classes_that_clients_of_few_labels_would_take_rounds_to_learn(experiment):
    run = experiment(head_init="ridge", partition="labels:2", **FEW)
    _, accuracy, *_ = run.evaluator.evaluate(run.server, run.clients.parts, run.splits.test)
    assert accuracy > 0.6


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"algorithm": "fedper"}, "the head stays with clients"),
        ({"attack": "sign_flip"}, "--attack"),
    ],
    ids=str,
)
def test_what_has_no_such_head_is_refused(settings, why):
    settings = FEW | {"head_init": "ncm", "device": "cpu"} | settings
    with pytest.raises(InputError, match=why):
        prepare(resolve(settings))


@pytest.mark.slow
def test_a_run_that_goes_on_has_its_head_once(tmp_path):
    settings = FEW | {"head_init": "cof", "algorithm": "las", "residual": "client"}
    checkpoints, run = keep_two_rounds(tmp_path, **settings)
    again = prepare(run.settings)
    resume(again, checkpoints)
    for one in (run, again):
        one.history.n_epochs = 3
        one.history.add(train_round(one, 3))
    assert torch.equal(again.server.theta, run.server.theta)
    assert again.server.traffic == run.server.traffic


def test_where_no_covariance_shows_or_none_has_an_inverse_it_is_said():
    few = FEW | {"device": "cpu"}
    with pytest.raises(InputError, match="no class is held by two clients"):
        prepare(resolve(few | {"head_init": "cof", "partition": "labels:1", "n_clients": 10}))
    with pytest.raises(InputError, match="--head_ridge 0: the matrix of the features has no inverse"):
        over(torch.ones(3, 3).double(), torch.ones(2, 3).double(), 0.0)


def test_a_network_that_does_something_with_what_its_head_makes_is_refused(monkeypatch):
    run = prepare(resolve(FEW | {"device": "cpu"}))
    forward = type(run.model.module).forward
    monkeypatch.setattr(type(run.model.module), "forward", lambda self, x: 2 * forward(self, x))
    with pytest.raises(InputError, match="logits are not what its last layer makes"):
        fit_head(HeadSettings("ncm"), run.clients.trainer, run.server.theta)
