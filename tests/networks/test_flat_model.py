"""FlatModel's views, and what its layout says of a network."""

from functools import partial

import pytest
import torch
from conftest import flat_state
from torch import nn

from fedmerge import networks

build = partial(networks.build_model, image_size=32, n_classes=10, seed=0)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_the_vector_is_the_module_and_the_module_is_the_vector(norm):
    module = build("cnn", channels=3, norm=norm)
    before = flat_state(module)
    flat = networks.FlatModel(module)
    assert torch.equal(flat.vector, before)
    assert flat.layout.n_trainable == sum(p.numel() for p in module.parameters())
    flat.vector.mul_(2)
    assert torch.equal(flat_state(module), 2 * before)
    with torch.no_grad():
        next(module.parameters()).fill_(3)
    assert (flat.vector[: flat.layout.sizes[0]] == 3).all()


def test_backward_fills_the_gradient_vector_and_forward_moves_the_buffers():
    module, twin = (build("cnn", channels=3, norm="batch") for _ in range(2))
    flat, x = networks.FlatModel(module), torch.randn(5, 3, 32, 32)
    for m in (module, twin):
        m(x).square().sum().backward()
    assert torch.allclose(flat.gradient, torch.cat([p.grad.flatten() for p in twin.parameters()]), rtol=1e-4, atol=1e-4)
    buffers = flat.vector[flat.layout.n_trainable :]
    assert torch.allclose(buffers, flat_state(twin)[flat.layout.n_trainable :])
    assert not torch.equal(buffers, flat_state(build("cnn", channels=3, norm="batch"))[flat.layout.n_trainable :])


def test_a_shared_parameter_is_refused():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    with pytest.raises(ValueError, match="two places"):
        networks.FlatModel(nn.Sequential(first, second))


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_the_layout_knows_what_belongs_to_norm_layers(norm):
    model = networks.FlatModel(build("cnn", channels=3, norm=norm))
    own = torch.zeros(model.layout.dim, dtype=torch.bool)
    for begin, end in model.layout.norms:
        own[begin:end] = True
    model.vector.zero_()
    model.vector[own] = 1.0
    for name, tensor in model.module.state_dict().items():
        if tensor.is_floating_point():
            in_norm = name.split(".")[0] in ("1", "5")  # of the cnn's layers
            assert tensor.eq(1.0 if in_norm else 0.0).all(), name
    assert own.sum() == {"batch": 4 * 96, "group": 2 * 96, "none": 0}[norm]


def test_features_of_another_vector_are_those_of_its_model_and_change_nothing():
    model, other = (networks.FlatModel(build("cnn", channels=1, norm="batch", seed=s)) for s in (0, 1))
    before, other_before = model.vector.clone(), other.vector.clone()
    x = torch.randn(5, 1, 32, 32)
    with model.keeping_features():
        found = model.features_of(other.vector, x)
    assert torch.equal(found, other.module.eval()[:-1](x))
    assert torch.equal(model.vector, before)
    assert torch.equal(other.vector, other_before)
    assert model.module.training
    model.module(x)
    assert model.features is None  # nobody asked


class Mixed(nn.Module):
    """All kinds of normalisation layers, and a head that is no linear layer, before others in the order of names."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.stem = nn.Conv2d(1, 4, 1)
        self.norms = nn.ModuleList([nn.LayerNorm(4), nn.RMSNorm(4), nn.BatchNorm1d(4), nn.GroupNorm(2, 4)])
        self.inner = nn.Linear(4, 4)
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        return self.head(self.stem(x)).mean((2, 3)) * self.scale


def test_norm_layers_of_every_kind_and_the_head_are_known():
    model = networks.FlatModel(Mixed())
    sizes = {name: model.layout.sizes[i] for i, name in enumerate(model.layout.names)}
    assert networks.head_of(model.module) == "head"
    begin, end = model.layout.head
    assert end - begin == sizes["head.weight"] + sizes["head.bias"] == 15
    assert torch.equal(model.vector[begin:end], torch.cat([p.flatten() for p in model.module.head.parameters()]))
    in_norms = sum(end - begin for begin, end in model.layout.norms)
    assert in_norms == 8 + 4 + 16 + 8  # LayerNorm, RMSNorm, BatchNorm with its statistics, GroupNorm
    x = torch.randn(2, 1, 5, 5)
    with model.keeping_features():
        model.module(x)
        assert torch.equal(model.features, model.module.stem(x))


def test_the_gradient_of_a_part_of_the_weights_is_that_of_its_place():
    model = networks.FlatModel(build("cnn", channels=1, norm="none"))
    model.gradient.copy_(torch.arange(len(model.gradient)))
    begin, end = model.layout.head
    assert end == model.layout.n_trainable
    assert model.gradient_of(model.trainable[begin:end])[0] == begin
    middle = model.gradient_of(model.trainable[100:110])
    assert middle.tolist() == list(range(100, 110))
    other = model.gradient_of(torch.zeros(model.layout.n_trainable))
    assert other.data_ptr() == model.gradient.data_ptr()
    assert len(other) == len(model.gradient)
