"""FlatModel's views, the networks' shapes, and starting weights from files."""

import os
import pickle
from functools import partial

import pytest
import torch
import torchvision
from conftest import flat_state
from torch import nn

import fedalg
from fedmerge import datasets, networks
from fedmerge.config.resolve import resolve
from fedmerge.errors import InputError

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


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize(("name", "n_weights"), [("resnet18", 11_173_962), ("resnet50", 23_520_842)])
def test_resnets_keep_the_resolution_of_small_images(name, n_weights, size):
    """The stem and the missing pool leave size / 8 after the four stages; the weight counts are the usual ones."""
    module = build(name, channels=3, norm="batch", image_size=size)
    assert sum(p.numel() for p in module.parameters()) == n_weights
    shapes = []
    module.layer4.register_forward_hook(lambda _, __, out: shapes.append(out.shape[-1]))
    assert module.eval()(torch.zeros(1, 3, size, size)).shape == (1, 10)
    assert shapes == [size // 8]


def test_group_norm_replaces_every_batch_norm():
    modules = list(build("resnet18", channels=1, norm="group", image_size=8).modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in modules)
    assert sum(isinstance(m, nn.GroupNorm) for m in modules) == 20
    assert networks.FlatModel(modules[0]).layout.dim == networks.FlatModel(modules[0]).layout.n_trainable


def test_the_seed_decides_the_weights_and_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    a, b = build("cnn", channels=1, norm="none"), networks.build_model("cnn", 1, 32, 10, "none", seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(flat_state(a), flat_state(build("cnn", channels=1, norm="none")))
    assert not torch.equal(flat_state(a), flat_state(b))


def test_saved_weights_come_back_and_get_a_new_head_for_other_classes(tmp_path):
    path, saved = tmp_path / "weights.pt", build("cnn", channels=3, norm="batch", seed=5)
    networks.save_weights(path, saved)
    same = build("cnn", channels=3, norm="batch")
    networks.load_weights(same, path)
    assert torch.equal(flat_state(same), flat_state(saved))
    other = networks.build_model("cnn", 3, 32, 7, "batch", seed=0)
    head = other[-1].weight.clone()
    networks.load_weights(other, path)
    assert torch.equal(other[-1].weight, head)
    assert torch.equal(other[0].weight, saved[0].weight)


@pytest.mark.parametrize(
    ("saved_for", "wanted", "kept"), [("A", "A", 1), ("A", "B", 0), (None, "B", 1), ("A", None, 1)]
)
def test_a_head_is_kept_for_the_same_classes_only(tmp_path, saved_for, wanted, kept):
    saved, other = build("cnn", channels=3, norm="none", seed=5), build("cnn", channels=3, norm="none")
    networks.save_weights(tmp_path / "weights.pt", saved, saved_for)
    networks.load_weights(other, tmp_path / "weights.pt", wanted)
    assert torch.equal(other[0].weight, saved[0].weight)
    assert torch.equal(other[-1].weight, saved[-1].weight) == kept
    assert torch.equal(other[-1].bias, saved[-1].bias) == kept


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(1, 1), (3, 1), (6, 1), (16, 4), (32, 8), (64, 16), (100, 25), (240, 30), (97, 1)],
)
def test_group_norm_takes_any_number_of_channels(channels, groups):
    layer = networks.norm_layer("group")(channels)
    assert layer.num_groups == groups
    assert layer(torch.randn(2, channels, 2, 2)).shape == (2, channels, 2, 2)


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


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


def test_weights_of_another_model_or_nobody_knows_what_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    networks.save_weights("cnn.pt", build("cnn", channels=3, norm="batch"))
    with pytest.raises(InputError, match=r"cnn\.pt: is for another model"):
        networks.load_weights(build("cnn", channels=3, norm="none"), "cnn.pt")
    with pytest.raises(InputError, match="another model"):
        networks.load_weights(build("cnn", channels=1, norm="batch"), "cnn.pt")
    state = build("cnn", channels=3, norm="batch").state_dict()
    for odd in ({3: torch.zeros(1)}, {"0.weight": "text"}):
        torch.save({"format": "fedalg-weights-1", "state": {**state, **odd}}, "odd.pt")
        if 3 in odd:
            networks.load_weights(build("cnn", channels=3, norm="batch"), "odd.pt")  # ignored
            continue
        with pytest.raises(InputError, match="another model"):
            networks.load_weights(build("cnn", channels=3, norm="batch"), "odd.pt")
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"weights": torch.zeros(3)}, "foreign.pt")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    torch.save(Evil(), "evil2.pt")
    torch.save({"format": "fedalg-weights-1"}, "empty.pt")
    torch.save({"format": "fedalg-weights-1", "state": [1]}, "list.pt")
    for name in ("text.pt", "foreign.pt", "evil.pt", "evil2.pt", "empty.pt", "list.pt"):
        with pytest.raises(InputError, match="not a file of --save_weights"):
            networks.load_weights(build("cnn", channels=3, norm="batch"), name)
    assert not os.path.exists("evil")


@pytest.mark.parametrize("channels", [3, 1])
def test_pretrained_takes_all_but_the_head_and_the_centre_of_the_stem(tmp_path, monkeypatch, channels):
    """A stand-in with the published file's name, names and shapes lies where torchvision caches it."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    published = torchvision.models.resnet18()
    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    torch.save(published.state_dict(), tmp_path / "checkpoints" / url.rsplit("/", 1)[1])
    module = build("resnet18", channels=channels, norm="batch")
    head = module.fc.weight.clone()
    networks.load_pretrained(module, "resnet18")
    centre = published.conv1.weight[:, :, 2:5, 2:5]
    assert torch.equal(module.conv1.weight, centre if channels == 3 else centre.sum(1, keepdim=True))
    assert torch.equal(module.layer3[0].conv1.weight, published.layer3[0].conv1.weight)
    assert torch.equal(module.fc.weight, head)


def test_pretrained_without_network_says_what_to_do(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(InputError, match=r"python models\.py --download resnet50"):
        networks.load_pretrained(build("resnet50", channels=3, norm="batch"), "resnet50")


def test_the_pretrained_flag_reaches_the_model(monkeypatch):
    asked = []
    monkeypatch.setattr(networks, "load_pretrained", lambda module, name: asked.append(name))
    settings = {"model_name": "resnet18", "dataset": "CIFAR10", "pretrained": True}
    tiny = datasets.Images(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.arange(4))
    splits = datasets.Splits(tiny, tiny, tiny, 4, torch.zeros(3), torch.ones(3))
    module = fedalg.build_module(resolve(settings), splits)
    assert asked == ["resnet18"]
    assert module.fc.out_features == 4
