"""Merging rules for which clients measure something, and send it."""

import pytest
import torch
import torch.nn.functional as F
from conftest import train_rounds
from torch import nn
from toy import LAYOUT

from fedmerge import wire
from fedmerge.client_update import ClientUpdate
from fedmerge.errors import InputError
from fedmerge.local_training.client import patches
from fedmerge.merging import Aggregate, Arrival, WeightedSums, find_statistics
from fedmerge.networks.flat_model import FlatModel
from fedmerge.registry import MERGING_RULES, specs
from fedmerge.simulation.server import check_uploads

MEASURING = sorted(name for name, spec in specs("merge").items() if "uploads" in spec.more)
pytestmark = pytest.mark.usefixtures("small_networks", "one_thread")


def test_fisher_by_hand():
    """Weights of a quarter and three quarters, floor 1: (1 (3 + 1) + 3 (1 + 1) 5) / ((3 + 1) + 3 (1 + 1))."""
    sums = WeightedSums(find_statistics(("update", "fisher_weight", "fisher_update")), LAYOUT)
    for delta, fisher, weight in ((1.0, 3.0, 1), (5.0, 1.0, 3)):
        sums.add(ClientUpdate(torch.full((12,), delta), fisher=torch.full((9,), fisher)), weight)
    aggregate = Aggregate([Arrival(i, 1, 1, 1) for i in range(2)], sums.means(4, 2))
    step = MERGING_RULES["fisher"](aggregate, LAYOUT, fisher_samples=1, fisher_floor=1.0)
    torch.testing.assert_close(step, torch.tensor([3.4] * 9 + [4.0] * 3))


def test_regmean_is_least_squares_on_the_clients_inputs():
    """With nothing shrunk: the matrix whose outputs are nearest to the clients', each on its own inputs."""
    g = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 30, generator=g, dtype=torch.float64) for _ in range(3)]
    deltas = torch.randn(3, 12, generator=g, dtype=torch.float64)
    halves = [(x @ x.T / 30)[[0, 0, 1], [0, 1, 1]] for x in inputs]
    more = {"gram": torch.stack([torch.cat([half, half]) for half in halves])}
    aggregate = Aggregate([Arrival(i, 1, 1, w) for i, w in enumerate((1, 2, 1))], deltas=deltas.clone(), more=more)
    how = {"regmean_largest": 2, "regmean_samples": 1, "regmean_shrink": 1.0}
    step = MERGING_RULES["regmean"](aggregate, LAYOUT, **how)
    roots = [w**0.5 for w in (1, 2, 1)]
    x = torch.cat([root * each.T for root, each in zip(roots, inputs, strict=True)])
    for places in (slice(4), slice(7, 9)):
        own = [delta[places].view(-1, 2) for delta in deltas]
        y = torch.cat([root * (each.T @ w.T) for root, each, w in zip(roots, inputs, own, strict=True)])
        expected = torch.linalg.lstsq(x, y).solution.T.flatten()
        torch.testing.assert_close(step[places], expected, rtol=1e-4, atol=1e-5)
    mean = (torch.tensor([1, 2, 1], dtype=torch.float64) / 4) @ deltas
    torch.testing.assert_close(step[4:7], mean[4:7])
    torch.testing.assert_close(step[9:], mean[9:])


def test_regmean_leaves_weights_of_dead_inputs_to_the_mean():
    deltas = torch.tensor([[1.0] * 12, [3.0] * 12])
    dead = torch.tensor([[2.0, 0, 0], [1.0, 0, 0]])  # the second input is always 0
    aggregate = Aggregate(
        [Arrival(i, 1, 1, 1) for i in range(2)], deltas=deltas, more={"gram": torch.cat([dead, 0 * dead], 1)}
    )
    how = {"regmean_largest": 2, "regmean_samples": 1, "regmean_shrink": 0.9}
    step = MERGING_RULES["regmean"](aggregate, LAYOUT, **how)
    torch.testing.assert_close(step[:4], torch.tensor([5 / 3, 2, 5 / 3, 2]), rtol=1e-4, atol=0)
    assert (step[7:9] == 2).all()


@pytest.fixture
def trained(experiment):
    """A client of --model_name small that has trained, as a local_training.Client."""
    run = experiment(model_name="small", norm="batch", n_clients=5, n_epochs=1)
    client = run.clients.trainer.client(0, 1)
    client.train(run.server.theta)
    return client


def test_fisher_information_is_the_mean_squared_gradient_of_drawn_labels(trained):
    """Against autograd, a sample at a time; every sample counts once, whatever n is."""
    found, n = trained.fisher(10**6), trained.n_samples
    model, images = trained.model.plain_copy(), trained.splits.normalise(trained.splits.train.images)
    order = trained.indices[torch.randperm(n, generator=trained.rng("fisher"))]
    draws = torch.rand(n, generator=trained.rng("fisher label"))
    total, labels = 0, []
    for place, draw in zip(order, draws, strict=True):
        logits = model(images[place][None])
        y = int((logits.softmax(1).detach().cumsum(1)[0] < draw).sum())
        labels.append(y)
        grads = torch.autograd.grad(F.cross_entropy(logits, torch.tensor([y])), list(model.parameters()))
        total = total + torch.cat([g.flatten() for g in grads]) ** 2
    torch.testing.assert_close(found, total / n, rtol=1e-3, atol=1e-9)
    assert len(set(labels)) > 2
    some = trained.fisher(3)
    assert not torch.equal(some, found)
    assert trained.model.module.training


def test_a_layers_inputs_are_what_it_multiplies(trained):
    """By the outputs: of the patches of a convolution, and the inputs of a linear layer, times the weights."""
    for layer, x in (
        (nn.Conv2d(3, 4, 3, stride=2, padding=1, dilation=2, bias=False), torch.randn(2, 3, 9, 9)),
        (nn.Linear(6, 4, bias=False), torch.randn(2, 5, 6)),
    ):
        rows = patches(layer, x)
        out = (rows @ layer.weight.flatten(1).T).flatten()
        expected = layer(x) if isinstance(layer, nn.Linear) else layer(x).permute(0, 2, 3, 1)
        torch.testing.assert_close(out, expected.flatten())


def test_grams_are_of_the_inputs_at_the_trained_model(trained):
    first, last = trained.input_grams(["0.weight", "7.weight"], 10**6)
    model, images = trained.model.plain_copy(), trained.splits.normalise(trained.splits.train.images[trained.indices])
    x = model[:7](images)
    torch.testing.assert_close(last, (x.T @ x / len(x)).detach(), rtol=1e-4, atol=1e-5)
    rows = patches(model[0], images)
    torch.testing.assert_close(first, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)
    assert not any(module._forward_pre_hooks for module in trained.model.module.modules())
    assert trained.model.module.training


def test_which_layers_are_matrices():
    module = nn.Sequential(
        *(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, padding_mode="reflect")),
        *(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, padding="same"), nn.Flatten(), nn.Linear(8, 3, bias=False)),
    )
    assert FlatModel(module).layout.inputs == (18, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8)


@pytest.mark.parametrize("rule", MEASURING)
@pytest.mark.parametrize("real", [False, True])
def test_what_is_measured_is_sent_and_counted(experiment, rule, real):
    settings = {"model_name": "small", "n_clients": 5, "participation": 0.4, "local_steps": 2, "merge": rule}
    run = experiment(**settings, wire="real" if real else "formula")
    lengths = run.server.algorithm.rule_uploads
    assert sum(lengths.values()) > 1000
    train_rounds(run, 2)
    each = wire.dense_bytes(run.model.layout.dim + sum(lengths.values()))
    assert [row["bytes_up"] for row in run.history.rows] == [2 * each] * 2
    assert torch.isfinite(run.server.theta).all()


@pytest.mark.parametrize("rule", MEASURING)
def test_layers_that_clients_keep_have_no_part_in_what_they_measure(experiment, rule):
    with pytest.raises(InputError, match=f"--merge {rule} needs an algorithm under which clients share all weights"):
        experiment(merge=rule, algorithm="fedper")


def test_what_a_rule_has_clients_send_has_a_name_of_its_own(experiment):
    algorithm = experiment(algorithm="scaffold").server.algorithm
    algorithm.rule_uploads = {"control": 3}
    with pytest.raises(InputError, match="fisher: uploads has control, and so has Scaffold: another name"):
        check_uploads(algorithm, MERGING_RULES["fisher"])


@pytest.mark.parametrize("rule", MEASURING)
def test_what_is_measured_is_exact_where_training_is_not(experiment, rule):
    settings = {"model_name": "small", "n_clients": 5, "participation": 0.4, "local_steps": 2, "merge": rule}
    run = experiment(**settings, precision="bf16")
    train_rounds(run, 1)
    client = run.clients.trainer.client(0, 1)
    client.train(run.server.theta)
    found = run.server.algorithm.measure_for_rule(client)
    assert {vector.dtype for vector in found.values()} == {torch.float32}


class Unasked(nn.Module):
    """Whose second layer's weight is used without calling it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 8), nn.Linear(8, 10)

    def forward(self, x):
        return F.linear(self.first(x.flatten(1)), self.second.weight)


def test_a_layer_that_is_not_called_is_averaged(trained):
    trained.trainer.model = trained.model = FlatModel(Unasked())
    first, second = trained.input_grams(["first.weight", "second.weight"], 20)
    assert first.any()
    assert not second.any()
    deltas = torch.tensor([[1.0] * 12, [3.0] * 12])
    aggregate = Aggregate([Arrival(i, 1, 1, 1) for i in range(2)], deltas=deltas, more={"gram": torch.zeros(2, 6)})
    how = {"regmean_largest": 2, "regmean_samples": 1, "regmean_shrink": 0.9}
    torch.testing.assert_close(MERGING_RULES["regmean"](aggregate, LAYOUT, **how), torch.full((12,), 2.0))


def test_regmean_shrinks_all_but_the_diagonal_by_hand():
    """Grams of [[2, 1], [1, 2]] and [[1, 0], [0, 1]] become [[2, .5], [.5, 2]] and the same, by a half."""
    deltas = torch.zeros(2, 12)
    deltas[0, :4], deltas[1, :4] = torch.tensor([1.0, 0, 0, 1]), torch.tensor([0.0, 1, 1, 0])
    more = {"gram": torch.tensor([[2.0, 1, 2, 0, 0, 0], [1.0, 0, 1, 0, 0, 0]])}
    aggregate = Aggregate([Arrival(i, 1, 1, 1) for i in range(2)], deltas=deltas.clone(), more=more)
    how = {"regmean_largest": 2, "regmean_samples": 1, "regmean_shrink": 0.5}
    step = MERGING_RULES["regmean"](aggregate, LAYOUT, **how)
    first, second = torch.tensor([[2.0, 0.5], [0.5, 2.0]]), torch.eye(2)
    right = torch.eye(2) @ first + torch.tensor([[0.0, 1], [1, 0]]) @ second
    torch.testing.assert_close(step[:4].view(2, 2), right @ torch.linalg.inv(first + second), rtol=1e-4, atol=1e-5)
