"""SSFL: which weights are chosen, that no others move, and what is sent."""

import pytest
import torch
import torch.nn.functional as F
from conftest import POOLS, train_round, train_rounds

from fedmerge import wire
from fedmerge.errors import InputError

FEW = {"model_name": "small", "n_clients": 4, "participation": 0.5, "n_epochs": 3}

pytestmark = pytest.mark.usefixtures("small_networks", "one_thread")


def test_the_largest_products_of_weight_and_gradient_are_chosen(experiment):
    """Means by the clients' samples, of one batch each; vectors are kept whole."""
    first = experiment(**FEW, dirichlet=0.5, norm="group")
    run = experiment(algorithm="ssfl", ssfl_keep=0.1, dirichlet=0.5, norm="group", **FEW)
    theta, model, total = first.server.theta, first.model, 0
    for client_id, part in enumerate(first.clients.parts):
        client = first.clients.trainer.client(client_id, 1)
        x, y = next(iter(client.batches(1, client.rng("saliency"))))
        model.load(theta)
        named = dict(model.module.named_parameters())
        grads = torch.autograd.grad(F.cross_entropy(model.module(x), y), list(named.values()))
        saliency = [(w * g).abs() for w, g in zip(named.values(), grads, strict=True)]
        total = total + len(part) * torch.cat([s.flatten() if s.dim() > 1 else s.flatten() * 0 for s in saliency])
    shaped = torch.cat([torch.full((p.numel(),), p.dim() > 1) for p in model.module.parameters()])
    k = round(0.1 * int(shaped.sum()))
    chosen = ~shaped
    chosen[total.topk(k).indices] = True
    assert torch.equal(run.server.theta, theta * chosen)
    assert torch.equal(run.server.algorithm.own, (~chosen).nonzero().view(-1))


@pytest.mark.parametrize(
    "how",
    [
        {"weight_decay": 0.1},
        {"local_optimizer": "adam", "clip_norm": 0.1},
        *({"local": name} for name in ("head_first", "sam", "moon", "ntd")),
        {"local": "soups", **POOLS},
        {"local": "lss", **POOLS},
        {"residual": "client", "compressor": "topk", "sparsity": 0.5},
        {"downlink": "sparse", "down_sparsity": 0.1, "wire": "real", "value_bits": 8},
        {"merge": "tsv_m"},
    ],
    ids=str,
)
def test_all_other_weights_stay_zero(experiment, how):
    run = experiment(algorithm="ssfl", ssfl_keep=0.2, norm="batch", **FEW | how)
    before = run.server.theta.clone()
    train_rounds(run, 2)
    own = run.server.algorithm.own
    assert not run.server.served()[own].any()
    assert (
        not run.clients.trainer.client(0, 3).train(run.server.theta.clone())[own].any()
    )  # nor do they move at a client
    others = torch.ones(run.model.layout.n_trainable, dtype=torch.bool)
    others[own] = False
    changed = (run.server.theta != before)[: len(others)]
    assert changed[others].float().mean() > 0.5


def test_keeping_all_is_fedavg(experiment):
    runs = [experiment(norm="batch", **FEW, **how) for how in ({}, {"algorithm": "ssfl", "ssfl_keep": 1.0})]
    for run in runs:
        train_rounds(run, 2)
    assert torch.equal(runs[0].server.theta, runs[1].server.theta)


@pytest.mark.parametrize("shared", [True, False])
def test_values_alone_are_sent_once_the_mask_is_known(experiment, shared):
    """Saliencies of all clients come up, the first model and the mask go down; then no positions are sent."""
    run = experiment(algorithm="ssfl", ssfl_keep=0.1, shared_init=shared, downlink="dense", **FEW)
    n, own = run.model.layout.n_trainable, run.server.algorithm.own
    train_rounds(run, 2)
    first, second = run.history.rows
    each = wire.dense_bytes(n - len(own))
    saliency = wire.dense_bytes(n - 8 - 32 - 10)  # without the biases
    assert second["bytes_up"] == second["bytes_down"] == 2 * each
    assert first["bytes_up"] == 4 * saliency + 2 * each
    mask = (first["bytes_down"] - (0 if shared else 4 * wire.dense_bytes(n))) / 4
    assert n / 8 / 8 < mask < n / 8  # less than a bitmap
    assert first["kept_share"] == second["kept_share"]
    assert sorted(rounds for rounds, *_ in run.server.traffic.values()) in ([0, 0, 2, 2], [0, 1, 1, 2], [1, 1, 1, 1])
    assert sum(up for _, up, _ in run.server.traffic.values()) == second["bytes_up_total"]


def test_a_run_resumed_counts_it_once(experiment):
    """A second Server of the same settings, as a resumed run makes one, prepares the same."""
    one, two = (experiment(algorithm="ssfl", **FEW) for _ in range(2))
    assert torch.equal(one.server.theta, two.server.theta)
    assert one.server.before == two.server.before
    train_round(one, 1)
    assert train_round(one, 2)["bytes_up"] < min(up for up, _ in one.server.before.values())


def test_adapters_say_nothing_before_they_are_trained(experiment):
    with pytest.raises(InputError, match=r"ssfl: no weight of \S+\.[ab] matters before training"):
        experiment(algorithm="ssfl", trainable="lora", model_name="cnn")


def test_what_clients_would_measure_of_all_weights_is_refused(experiment):
    with pytest.raises(InputError, match="--merge fisher needs an algorithm under which clients share all weights"):
        experiment(algorithm="ssfl", merge="fisher", **FEW)
