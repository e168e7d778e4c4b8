"""What is trained of a network: it alone is in the vector, is sent and kept; what is frozen is held once."""

import json

import pytest
import torch
from conftest import QUICK, assert_alike, put_algorithm, train_round, train_rounds
from torch import nn
from torch.nn.utils import parametrize

import fedalg
from fedmerge import networks, wire
from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.client_update import ClientUpdate
from fedmerge.config.parser import typed_settings
from fedmerge.config.resolve import resolve
from fedmerge.errors import InputError
from fedmerge.networks.adapters import merge_adapters
from fedmerge.networks.flat_model import FlatModel
from fedmerge.networks.trainable import choose_trained
from fedmerge.simulation.experiment import prepare, starting_module
from fedmerge.simulation.run_state import RunState, resume

SMALL = {**QUICK, "device": "cpu", "participation": 0.2, "norm": "batch", "min_client_samples": 2, "local_steps": 4}
SELECTIONS = {
    "head": {"trainable": "head"},
    "norms": {"trainable": "norms"},
    "bias": {"trainable": "bias"},
    "lora": {"trainable": "lora", "lora_rank": 2},
    "lora of some layers": {"trainable": "lora", "lora_rank": 2, "lora_layers": "^[4-9]$"},
    "lora, A frozen": {"trainable": "lora", "lora_freeze_a": True},
    "lora, statistics trained": {"trainable": "lora", "bn": "train"},
    "all, statistics frozen": {"bn": "frozen"},
}


class Small(nn.Module):
    """A layer of each kind."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6)
        self.batch, self.layer = nn.BatchNorm2d(6), nn.LayerNorm(6)
        self.linear, self.head = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x):
        x = self.batch(self.depthwise(self.conv(x))).mean((2, 3))
        return self.head(self.linear(self.layer(x)).relu())


def names_of(module):
    return [name for name, p in module.named_parameters() if p.requires_grad]


def some_images(n=5):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("head", ["head.weight", "head.bias"]),
        ("norms", ["batch.weight", "batch.bias", "layer.weight", "layer.bias", "head.weight", "head.bias"]),
        ("bias", ["depthwise.bias", "batch.bias", "layer.bias", "linear.bias", "head.weight", "head.bias"]),
    ],
)
def test_what_is_named_is_trained_and_the_head(what, names):
    module = Small()
    choose_trained(module, what)
    assert names_of(module) == names


def test_an_adapter_adds_a_product_of_factors():
    module, x = Small(), some_images()
    before = module.eval()(x)
    plain = {name: p.clone() for name, p in module.named_parameters()}
    choose_trained(module, "lora", rank=2, alpha=3.0)
    torch.testing.assert_close(module(x), before, rtol=0, atol=0)  # B is zero at first
    factors = {}
    for name in ("conv", "depthwise", "linear"):
        (adapter,) = module.get_submodule(name).parametrizations.weight
        nn.init.normal_(adapter.b)
        assert adapter.a.shape == (2, plain[f"{name}.weight"][0].numel())
        factors[name] = 3.0 / 2 * torch.einsum("or,ri->oi", adapter.b, adapter.a)
    assert len(names_of(module)) == 3 * 2 + 2
    by_hand = Small().eval()
    by_hand.load_state_dict(plain | {n: t for n, t in by_hand.state_dict().items() if n not in plain})
    for name, change in factors.items():
        weight = by_hand.get_submodule(name).weight
        weight.data += change.view_as(weight)
    torch.testing.assert_close(module(x), by_hand(x))
    merge_adapters(module)
    assert not any(parametrize.is_parametrized(layer) for layer in module.modules())
    assert module.state_dict().keys() == Small().state_dict().keys()
    torch.testing.assert_close(module(x), by_hand(x))


def test_a_rank_is_no_larger_than_the_matrix():
    module = Small()
    choose_trained(module, "lora", rank=100)
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters() if p.requires_grad}
    assert shapes["linear.parametrizations.weight.0.a"] == (5, 6)
    assert shapes["depthwise.parametrizations.weight.0.b"] == (6, 6)


@pytest.mark.parametrize(
    ("module", "what", "more", "said"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), "norms", {}, "has none besides its head: --trainable head"),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), "lora", {}, "has none besides its head"),
        (nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 3)), "bias", {}, "has none besides its head"),
        (
            Small(),
            "lora",
            {"layers": "attention"},
            "--lora_layers attention: is in the name of no linear or .*conv, de",
        ),
    ],
)
def test_a_selection_of_nothing_is_refused(module, what, more, said):
    with pytest.raises(InputError, match=said):
        choose_trained(module, what, **more)


def test_a_network_may_freeze_what_it_wants_but_not_all():
    module = Small()
    module.conv.requires_grad_(False)
    model = FlatModel(module)
    assert "conv.weight" in model.frozen
    assert model.layout.n_trainable == sum(p.numel() for p in Small().parameters()) - 6 * 3 * 9
    with pytest.raises(InputError, match="nothing to train"):
        FlatModel(Small().requires_grad_(False))


@pytest.mark.parametrize("case", SELECTIONS)
def test_only_what_is_trained_is_sent_and_changes(case):
    run = prepare(resolve({**SMALL, **SELECTIONS[case], "n_clients": 5}))
    model, layout = run.model, run.server.layout
    names = {name for name, p in model.module.named_parameters() if p.requires_grad}
    assert set(layout.names) == names
    buffers = sum(b.numel() for b in model.module.buffers() if b.is_floating_point())
    assert layout.dim - layout.n_trainable == (buffers if run.settings.bn == "train" else 0)
    frozen = {name: tensor.clone() for name, tensor in model.frozen.items()}
    row = train_round(run, 1)
    assert row["bytes_up"] == wire.dense_bytes(layout.dim)
    assert run.server.theta.shape == (layout.dim,)
    for name, before in frozen.items():
        assert torch.equal(model.frozen[name], before), name
    if case != "all, statistics frozen":
        assert layout.dim < sum(t.numel() for t in frozen.values())


@pytest.mark.parametrize("case", SELECTIONS)
def test_what_is_frozen_is_held_once_by_all_who_train(case):
    run = prepare(resolve({**SMALL, **SELECTIONS[case]}))
    model = run.model
    twin = model.twin()
    places = {name: tensor.data_ptr() for name, tensor in model.frozen.items()}
    assert {name: tensor.data_ptr() for name, tensor in twin.frozen.items()} == places
    assert places or case == "all"
    assert twin.vector.data_ptr() != model.vector.data_ptr()
    assert torch.equal(twin.vector, model.vector)
    twin.vector.add_(1)
    assert not torch.equal(twin.vector, model.vector)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("case", SELECTIONS)
def test_side_by_side_and_resumed_is_the_same(case, tmp_path):
    settings = {**SMALL, **SELECTIONS[case], "algorithm": "las", "residual": "client", "checkpoint_dir": str(tmp_path)}
    alone = train_rounds(prepare(resolve({**settings, "parallel_clients": 1})), 2)
    run = train_rounds(prepare(resolve({**settings, "parallel_clients": 3})), 1)
    state, other = RunState(run).state_dict(), prepare(resolve(settings))

    class Saved:
        def load(self, device):
            return [("state", state)]

    resume(other, Saved())
    train_rounds(other)
    assert_alike(alone, other)


def test_a_checkpoint_on_other_frozen_weights_is_refused():
    run = prepare(resolve({**SMALL, "trainable": "head"}))
    state = RunState(run).state_dict()
    assert len(state["frozen"]) == 8
    assert "frozen" not in RunState(prepare(resolve(SMALL))).state_dict()

    class Saved:
        def load(self, device):
            return [("state", {**state, "frozen": "0" * 8})]

    with pytest.raises(InputError, match="weights that are not trained are others"):
        resume(run, Saved())


@pytest.mark.slow
@pytest.mark.parametrize("case", SELECTIONS)
def test_saved_weights_are_those_of_a_plain_network(case, tmp_path):
    flags = {**SMALL, **SELECTIONS[case], "out": str(tmp_path / "out"), "save_weights": str(tmp_path / "weights.pt")}
    run = fedalg.main(typed_settings({"quiet": True, **flags}))
    plain = prepare(resolve({**SMALL, "init_weights": str(tmp_path / "weights.pt")}))
    images = run.splits.normalise(run.splits.test.images)
    run.model.load(run.server.served())
    logits = [model.module.eval()(images) for model in (run.model, plain.model)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


def test_names_of_runs_say_what_is_trained_and_not_what_follows_from_it():
    from fedmerge.config.run_name import run_name

    def name(**settings):
        return run_name(resolve({**QUICK, **settings})).partition("lr=0.05")[2]

    assert name() == ""
    assert name(bn="train") == ""
    assert name(trainable="lora") == "_trainable=lora"
    assert name(trainable="lora", bn="train") == "_bn=train_trainable=lora"
    assert name(bn="frozen") == "_bn=frozen"


def test_adapters_are_the_same_whoever_draws_them():
    settings = resolve({**SMALL, **SELECTIONS["lora"]})
    one = prepare(settings).model.vector
    torch.rand(7)
    assert torch.equal(one, prepare(settings).model.vector)
    other = prepare(resolve({**SMALL, **SELECTIONS["lora"], "seed": 1})).model.vector
    assert not torch.equal(one, other)


# --------------------------------------------------------------------------------------------------------------------
# BatchNorm's statistics


def trained_by_one(bn, epochs, **more):
    run = prepare(resolve({**SMALL, "local_steps": None, "n_clients": 10, "n_client_epochs": epochs, "bn": bn, **more}))
    client = run.clients.trainer.client(0, 1)
    return client.train(run.server.theta.clone()).clone(), run.server.layout.n_trainable


def test_statistics_after_the_first_epoch_are_those_of_the_first_epoch():
    (once, n), (first, _) = (trained_by_one(bn, 1) for bn in ("train", "eval_after_first_epoch"))
    assert torch.equal(once, first)
    (later, _), (train, _) = (trained_by_one(bn, 3) for bn in ("eval_after_first_epoch", "train"))
    assert torch.equal(later[n:], once[n:])
    assert not torch.equal(train[n:], once[n:])
    assert not torch.equal(train[:n], later[:n])


@pytest.mark.parametrize("local", ["soups", "lss"])
def test_each_model_of_a_pool_measures_in_its_first_epoch(local):
    more = {"local": local, "n_verts": 2, "soup_epochs": 2, "n_client_epochs": 1}
    run = prepare(resolve({**SMALL, "local_steps": None, "bn": "eval_after_first_epoch", **more}))
    modes, client = [], run.clients.trainer.client(0, 1)
    run.model.module.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    client.train(run.server.theta.clone())
    per_epoch = client.steps_of(1)
    assert modes[: 4 * per_epoch] == 2 * ([True] * per_epoch + [False] * per_epoch)


@pytest.mark.parametrize("local", ["moon", "swad"])
def test_a_look_at_a_model_leaves_the_mode_in_which_it_trains(local):
    """MOON looks at two models in each step, SWAD judges its own: both in evaluation mode, and then as before."""
    more = {"local": local, "n_client_epochs": 3, "batch_size": 16, "n_clients": 20}
    run = prepare(resolve({**SMALL, "local_steps": None, "bn": "eval_after_first_epoch", **more}))
    modes, client = [], run.clients.trainer.client(0, 1)
    run.model.module.register_forward_pre_hook(
        lambda module, _: modes.append(module.training) if torch.is_grad_enabled() else None
    )
    client.train(run.server.theta.clone())
    first = modes.index(False)
    assert 0 < first < len(modes) / 2
    assert not any(modes[first:])


def test_frozen_statistics_are_as_they_began():
    run = prepare(resolve({**SMALL, "bn": "frozen"}))
    before = [b.clone() for b in run.model.module.buffers()]
    train_rounds(run, 2)
    assert all(torch.equal(*pair) for pair in zip(before, run.model.module.buffers(), strict=True))
    with pytest.raises(InputError, match="--bn_recalibrate has no effect with --bn frozen"):
        resolve({**SMALL, "bn": "frozen", "bn_recalibrate": True, "local": "swa"})


def test_starting_weights_are_without_adapters():
    settings = resolve({**SMALL, "trainable": "lora"})
    run = prepare(settings)
    module = starting_module(settings, run.splits)
    assert not any(parametrize.is_parametrized(layer) for layer in module.modules())


def test_an_algorithm_with_vectors_of_its_own_sends_those_of_what_is_trained():
    class Twice(FedAvg):
        uploads = statistics = ("twice",)

        def client_update(self, delta, start, client):
            return ClientUpdate(delta, twice=2 * delta[: self.layout.n_trainable])

    run = prepare(resolve({**SMALL, "trainable": "head", "n_clients": 5}))
    put_algorithm(run, Twice)
    row = train_round(run, 1)
    head = networks.head_of(run.model.module)
    n = sum(p.numel() for name, p in run.model.module.named_parameters() if name.rpartition(".")[0] == head)
    assert row["bytes_up"] == wire.dense_bytes(2 * n)


def test_personal_parts_stand_on_what_is_frozen(tmp_path):
    flags = {**SMALL, **SELECTIONS["lora"], "n_clients": 4, "participation": 0.5, "algorithm": "las"}
    folder = tmp_path / "parts"
    fedalg.main(typed_settings({"quiet": True, **flags, "out": str(tmp_path / "out"), "save_clients": str(folder)}))
    before = (folder / "accuracy.csv").read_bytes()
    (folder / "accuracy.csv").unlink()
    fedalg.main(typed_settings({"evaluate_clients": str(folder), "quiet": True, "device": "cpu"}))
    assert (folder / "accuracy.csv").read_bytes() == before
    index = json.loads((folder / "clients.json").read_text())
    (folder / "clients.json").write_text(json.dumps({**index, "frozen": "0" * 8}))
    with pytest.raises(InputError, match=r"clients.json: is of a run whose weights that are not trained are others"):
        fedalg.main(typed_settings({"evaluate_clients": str(folder), "quiet": True, "device": "cpu"}))
