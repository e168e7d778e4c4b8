"""Starting weights: files of this program, and published ones."""

import os
import pickle
from functools import partial

import pytest
import torch
from conftest import flat_state

from fedmerge import datasets, networks
from fedmerge.config.resolve import resolve
from fedmerge.errors import InputError
from fedmerge.registry import having, said
from fedmerge.simulation.experiment import build_module

build = partial(networks.build_model, image_size=32, n_classes=10, seed=0)


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


def leave(folder, monkeypatch, published, weights):
    """Leave a stand-in with the published file's name, names and shapes where torchvision caches it."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder))
    (folder / "checkpoints").mkdir()
    torch.save(published.state_dict(), folder / "checkpoints" / weights.IMAGENET1K_V1.url.rsplit("/", 1)[1])


@pytest.mark.parametrize("channels", [3, 1])
def test_pretrained_takes_all_but_the_head_and_the_centre_of_the_stem(tmp_path, monkeypatch, channels):
    import torchvision  # here, since it takes seconds

    published = torchvision.models.resnet18()
    leave(tmp_path, monkeypatch, published, torchvision.models.ResNet18_Weights)
    module = build("resnet18", channels=channels, norm="batch")
    head = module.fc.weight.clone()
    networks.load_pretrained(module, "resnet18")
    centre = published.conv1.weight[:, :, 2:5, 2:5]
    assert torch.equal(module.conv1.weight, centre if channels == 3 else centre.sum(1, keepdim=True))
    assert torch.equal(module.layer3[0].conv1.weight, published.layer3[0].conv1.weight)
    assert torch.equal(module.fc.weight, head)


@pytest.mark.parametrize("channels", [3, 1])
def test_pretrained_mobilenet_takes_all_but_the_head(tmp_path, monkeypatch, channels):
    import torchvision

    published = torchvision.models.mobilenet_v3_small()
    leave(tmp_path, monkeypatch, published, torchvision.models.MobileNet_V3_Small_Weights)
    module = build("mobilenet_v3_small", channels=channels, norm="batch")
    head = module.classifier[3].weight.clone()
    networks.load_pretrained(module, "mobilenet_v3_small")
    stem = published.features[0][0].weight
    assert torch.equal(module.features[0][0].weight, stem if channels == 3 else stem.sum(1, keepdim=True))
    assert torch.equal(module.features[5].block[0][0].weight, published.features[5].block[0][0].weight)
    assert torch.equal(module.classifier[0].weight, published.classifier[0].weight)
    assert torch.equal(module.classifier[3].weight, head)


def test_published_weights_are_fetched_from_where_torchvision_has_them():
    import torchvision

    for name in having("model_name", "pretrained"):
        if not said("model_name", name.removesuffix("NAME"), "pretrained").startswith("https:"):
            continue
        assert said("model_name", name, "pretrained") == torchvision.models.get_model_weights(name).IMAGENET1K_V1.url


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
    module = build_module(resolve(settings), splits)
    assert asked == ["resnet18"]
    assert module.fc.out_features == 4
