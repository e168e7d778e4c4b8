"""The networks: laws over all of them, and the shapes of each."""

from functools import partial

import pytest
import torch
from conftest import QUICK, flat_state
from torch import nn

from fedmerge import networks
from fedmerge.config.option_help import NORMS
from fedmerge.config.resolve import resolve
from fedmerge.errors import InputError
from fedmerge.registry import NETWORKS, said, use_plugins
from fedmerge.simulation.experiment import prepare

build = partial(networks.build_model, image_size=32, n_classes=10, seed=0)
VARIANTS = [(name, norm) for name in sorted(NETWORKS) for norm in said("model_name", name, "norms", NORMS)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm"), VARIANTS)
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28), (1, 8)])
def test_every_network_learns_from_images_of_every_size_or_says_why_not(name, norm, channels, size):
    if (name, size) == ("resnet50", 28):
        pytest.skip("resnet18 has the same stem, and is smaller")
    try:
        module = networks.build_model(name, channels, size, 7, norm, seed=0)
    except InputError:
        assert (name, size) == ("lenet", 8)
        return
    model, x = networks.FlatModel(module), torch.randn(4, channels, size, size)
    loss = nn.functional.cross_entropy(module(x), torch.tensor([0, 1, 2, 6]))
    loss.backward()
    assert torch.isfinite(model.gradient).all()
    begin, end = model.layout.head
    assert end == model.layout.n_trainable
    assert model.gradient[begin:end].abs().sum() > 0
    assert module.eval()(x).shape == (4, 7)
    kinds = {"batch": nn.BatchNorm2d, "group": nn.GroupNorm}
    found = {kind for kind, layer in kinds.items() if any(isinstance(m, layer) for m in module.modules())}
    assert found == {norm} - {"none"}
    assert bool(model.layout.norms) == (norm != "none")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm"), VARIANTS)
def test_the_same_seed_makes_the_same_network(name, norm):
    once, again, other = (networks.build_model(name, 1, 16, 10, norm, seed) for seed in (0, 0, 1))
    assert torch.equal(flat_state(once), flat_state(again))
    assert not torch.equal(flat_state(once), flat_state(other))


def test_lenet_by_hand():
    """456 + 2,416 weights of convolutions, 48,120 + 10,164 + 850 of linear layers; the sizes are NIID-Bench's."""
    module = build("lenet", channels=3, norm="none")
    assert [p.numel() for p in module.parameters()] == [450, 6, 2400, 16, 48000, 120, 10080, 84, 840, 10]
    conv1, conv2 = (m for m in module if isinstance(m, nn.Conv2d))
    linear = [m for m in module if isinstance(m, nn.Linear)]
    x = torch.randn(2, 3, 32, 32)
    y = nn.functional.max_pool2d(nn.functional.conv2d(x, conv1.weight, conv1.bias).relu(), 2)
    y = nn.functional.max_pool2d(nn.functional.conv2d(y, conv2.weight, conv2.bias).relu(), 2).flatten(1)
    assert y.shape == (2, 400)
    for layer in linear:
        y = y @ layer.weight.T + layer.bias
        y = y if layer is linear[-1] else y.relu()
    assert torch.allclose(module(x), y, atol=1e-5)
    (first,) = [m for m in networks.build_model("lenet", 1, 28, 10, "none", 0) if getattr(m, "out_features", 0) == 120]
    assert first.in_features == 16 * 4 * 4  # of a 28x28 image
    with pytest.raises(InputError, match="lenet needs images of 16 pixels, not 12: --image_size 16 or more"):
        networks.build_model("lenet", 1, 12, 10, "none", 0)


def test_mobilenet_is_torchvisions_but_for_the_stem():
    import torchvision  # here, since it takes seconds

    module = build("mobilenet_v3_small", channels=3, norm="batch").eval()
    theirs = torchvision.models.mobilenet_v3_small(num_classes=10).eval()
    theirs.load_state_dict(module.state_dict())
    theirs.features[0][0].stride = (1, 1)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(module(x), theirs(x))
    assert module.features(x).shape[-1] == 2
    assert {m.eps for m in module.modules() if isinstance(m, nn.BatchNorm2d)} == {0.001}


@pytest.mark.parametrize(
    ("name", "n_weights", "size"),
    [("resnet18", 11_173_962, 32), ("resnet18", 11_173_962, 64), ("resnet50", 23_520_842, 32)],
)
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


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(1, 1), (3, 1), (6, 1), (16, 4), (32, 8), (64, 16), (100, 25), (240, 30), (97, 1)],
)
def test_group_norm_takes_any_number_of_channels(channels, groups):
    layer = networks.norm_layer("group")(channels)
    assert layer.num_groups == groups
    assert layer(torch.randn(2, channels, 2, 2)).shape == (2, channels, 2, 2)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"model_name": "mobilenet_v3_small", "norm": "none"}, "which needs batch or group"),
        ({"model_name": "lenet", "pretrained": True}, "no published weights of the lenet here"),
        ({"model_name": "mobilenet_v3_small", "norm": "group", "pretrained": True}, "have no group norm"),
    ],
)
def test_what_a_network_has_not_is_refused(settings, why):
    with pytest.raises(InputError, match=why):
        resolve(settings)


PLUGIN = '''
from torch import nn
from fedmerge.registry import network


@network("perceptron", norms=("none",))
def perceptron(channels, image_size, n_classes, norm):
    """one hidden layer"""
    n = channels * image_size**2
    return nn.Sequential(nn.Flatten(), nn.Linear(n, 16), nn.ReLU(), nn.Linear(16, n_classes))
'''


def test_a_network_is_one_file(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    use_plugins([tmp_path / "mine.py"])
    run = prepare(resolve({**QUICK, "model_name": "perceptron", "device": "cpu"}))
    assert run.settings.norm == "none"
    assert run.model.layout.sizes == (64 * 16, 16, 160, 10)
    assert "_model_name=perceptron_" in run.name
    assert "perceptron" in NETWORKS
    with pytest.raises(InputError, match="--norm batch is not for perceptron, which needs none"):
        resolve({"model_name": "perceptron", "norm": "batch"})
