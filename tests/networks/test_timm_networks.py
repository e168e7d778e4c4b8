"""timm's networks, by their names: built, refused, drawn, trained, named; nothing is downloaded here."""

import subprocess
import sys

import pytest
import torch
from conftest import train_rounds

from fedmerge import networks
from fedmerge.config.parser import parse_args, typed_settings
from fedmerge.config.resolve import resolve
from fedmerge.config.run_name import run_name, settings_of
from fedmerge.errors import InputError
from fedmerge.networks import timm_networks
from fedmerge.networks.norms import is_norm
from fedmerge.networks.weights import published_weights
from fedmerge.registry import NETWORKS, find, said
from fedmerge.reporting import run_record
from fedmerge.simulation.experiment import build_module, load_splits, prepare

SMALL = "vit_tiny_patch16_224"
SHORT = {"n_epochs": 1, "n_clients": 4, "participation": 0.5, "local_steps": 1, "batch_size": 8, "device": "cpu"}


@pytest.fixture(autouse=True, scope="module")
def timm():
    """timm, imported only by who runs these tests: it takes seconds."""
    return pytest.importorskip("timm", reason="timm is not here: pip install -r requirements.txt")


def build(member, channels=3, size=32, **options):
    options = {"drop_rate": None, "drop_path_rate": None, "patch_size": None, **options}
    return networks.build_model(f"timm/{member}", channels, size, 7, "own", 0, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("member", "options", "draws"),
    [
        ("resnet18", {}, False),
        ("convnext_atto", {"drop_path_rate": 0.1}, True),
        ("efficientnet_b0", {}, False),
        (SMALL, {"patch_size": 8, "drop_rate": 0.1}, True),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_of_timm_learns_and_is_told_whether_it_draws(member, options, draws, channels):
    model, x = networks.FlatModel(build(member, channels, **options)), torch.randn(2, channels, 32, 32)
    assert networks.draws_at_random(model, x) == draws
    torch.nn.functional.cross_entropy(model.module(x), torch.tensor([0, 6])).backward()
    begin, end = model.layout.head
    assert model.gradient[begin:end].abs().sum() > 0
    assert end == model.layout.n_trainable
    assert model.layout.norms


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"drop_path_rate": 0.2}], ids=str)
def test_a_run_is_the_same_however_many_clients_train_at_once(timm, options):
    made = []
    for at_once in (1, 2):
        given = {"model_name": f"timm/{SMALL}", "image_size": 16, "patch_size": 8, "parallel_clients": at_once}
        run = prepare(resolve({**SHORT, **given, **options}))
        assert run.clients.threads.n == (1 if options else at_once)
        made.append(train_rounds(run).server.theta)
    assert torch.equal(*made)
    assert run_record.record(run, finished=False)["environment"]["timm"] == timm.__version__


def test_norm_layers_of_its_own_are_norm_layers(timm):
    """Of which FedBN keeps each client its own: gains alone, and of a group norm that has its activation in it.

    NFNets do without: a block that is called NormFree has a gain of its own, and convolutions inside.
    """
    from timm.layers import GroupNormAct, NormMlpClassifierHead, RmsNorm

    layers = torch.nn.Sequential(RmsNorm(6), GroupNormAct(6, num_groups=2), NormMlpClassifierHead(6, 5, hidden_size=8))
    layout = networks.FlatModel(layers).layout
    with torch.device("meta"):
        free = timm.create_model("test_nfnet", num_classes=5)
    assert not [name for name, layer in free.named_modules() if is_norm(layer)]
    assert [end - begin for begin, end in layout.norms] == [6, 6, 6, 6, 6]  # the last two of the head's LayerNorm


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(InputError, match=r"timm .* has no such network: did you mean timm/resnet18, ") as caught:
        build("resnet19")
    assert "\n" not in str(caught.value)


def test_an_unknown_name_is_refused_before_any_data_are_read(tmp_path):
    settings = resolve({"model_name": "timm/resnet19", "dataset": "CIFAR10", "data_root": str(tmp_path)})
    with pytest.raises(InputError, match="has no such network"):
        prepare(settings)


def test_what_a_network_does_not_take_is_refused():
    with pytest.raises(InputError, match=r"^--patch_size has no effect with --model_name timm/resnet18: leave it out"):
        build("resnet18", patch_size=8)
    with pytest.raises(
        InputError, match=r"^--model_name timm/swin_tiny_patch4_window7_224 fails on .*another --image_size"
    ):
        build("swin_tiny_patch4_window7_224", size=8, patch_size=16)
    settings = resolve({"model_name": "timm/resnet18", "batch_size": 1})
    splits = load_splits(settings)
    with pytest.raises(InputError, match="--batch_size 1 is too small for the BatchNorm of timm/resnet18"):
        build_module(settings, splits)


def test_without_a_network_pretrained_is_a_line_that_says_what_to_do(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"'python models\.py --download timm/resnet18'") as caught:
        networks.load_pretrained(build("resnet18"), "timm/resnet18")
    assert "\n" not in str(caught.value)


def test_pretrained_takes_all_but_the_head_of_what_timm_makes_for_these_images(timm, monkeypatch):
    create, asked = timm.create_model, []

    def published(member, pretrained=False, **how):
        asked.append((member, pretrained, how))
        module = create(member, **how)
        module.pos_embed.data += 1
        return module

    module = build(SMALL, channels=1, patch_size=8)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    monkeypatch.setattr(timm, "create_model", published)
    networks.load_pretrained(module, f"timm/{SMALL}")
    how = {"in_chans": 1, "num_classes": 7, "img_size": 32, "patch_size": 8}
    assert asked == [(SMALL, True, how)]
    assert not torch.equal(module.pos_embed, before["pos_embed"])
    once = module.pos_embed.clone()
    networks.load_pretrained(module, f"timm/{SMALL}")
    assert torch.equal(module.pos_embed, once)  # what is not published is drawn alike
    monkeypatch.setattr(timm_networks, "_check_known", lambda member: None)
    with pytest.raises(InputError, match="no published weights of test_none"):
        published_weights("timm/test_none")


def test_a_member_is_a_name_like_any_other_and_its_slash_no_folder():
    args = parse_args(["--model_name", "timm/resnet50.a1_in1k", "--pretrained"])
    assert (args.norm, args.patch_size) == ("own", None)
    assert "_model_name=timm.resnet50.a1_in1k_" in run_name(args)
    assert "/" not in run_name(args)
    assert {"drop_rate", "patch_size"} <= settings_of(args).keys()
    assert "drop_rate" not in settings_of(resolve({}))
    assert find("model_name", "timm/resnet18").name == said("model_name", "timm/x", "library") + "/"
    assert find("algorithm", "fedavg/x") is None
    assert "timm/" not in list(NETWORKS)
    assert NETWORKS["timm/resnet18"].registered["name"] == "timm/"


@pytest.mark.parametrize("name", ["timm/", "timm", "timm//x", "timm/../x", "timm/a/b", "timm/hf-hub:a"])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(InputError, match="invalid choice"):
        typed_settings({"model_name": name})


@pytest.mark.slow
def test_timm_is_imported_only_for_its_networks():
    code = "import sys, fedalg, models; from fedmerge.networks import build_model; "
    code += "build_model('cnn', 1, 8, 10, 'none', 0); assert 'timm' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], timeout=100).returncode == 0


@pytest.mark.parametrize("what", ["head", "lora"])
@pytest.mark.parametrize(
    ("member", "options"),
    [("deit_tiny_distilled_patch16_224", {"size": 16, "patch_size": 8}), ("repvit_m0_9", {"size": 32})],
)
def test_both_heads_of_a_distilled_network_are_trained_whole(member, options, what):
    module = build(member, **options)
    networks.choose_trained(module, what)
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    heads = {name for name, _ in module.named_parameters() if name.startswith("head")}
    assert {name.split(".")[-3 if "repvit" in member else -2] for name in heads} == {"head", "head_dist"}
    assert heads <= trained
    assert not {name for name in trained if name.startswith("head")} - heads
    assert (trained == heads) == (what == "head")
