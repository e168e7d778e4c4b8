"""What a dataset says of itself where it is registered, and a dataset that is one file."""

import hashlib
import re

import pytest
import torch
from conftest import QUICK
from test_fashion_mnist import idx

import data
from fedmerge import datasets
from fedmerge.config.options import all_options
from fedmerge.config.parser import build_parser
from fedmerge.config.resolve import resolve
from fedmerge.errors import InputError
from fedmerge.registry import DATASETS, NETWORKS, having, specs, use_plugins
from fedmerge.simulation.experiment import prepare

KNOWN = {"augment", "never_augmented", "bundled", "domains", "model", "label_set", "download", "then", "title"} | {
    "pixels"
}


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_what_a_dataset_says_of_itself_makes_sense(name):
    more = specs("dataset")[name].more
    assert set(more) <= KNOWN
    assert f"    {'augment':<17}True" in datasets.__doc__
    assert all(f"\n    {keyword} " in datasets.__doc__ for keyword in more)
    assert not (more.get("augment") and more.get("never_augmented"))
    assert more.get("model", "resnet18") in NETWORKS
    assert more.get("label_set", name) in DATASETS


def test_the_classes_of_a_part_are_those_of_the_whole():
    found = {name: datasets.label_set(name) for name in [*DATASETS, "a folder"]}
    assert {name: of for name, of in found.items() if name != of} == {
        **{"CIFAR10T": "CIFAR10", "DIGITSA": "DIGITS", "DIGITSB": "DIGITS"}
    }


def test_defaults_are_those_of_the_dataset():
    usual = {name: resolve({"dataset": name}) for name in DATASETS}
    assert {name for name, args in usual.items() if args.model_name == "cnn"} == {"DIGITS", "DIGITSA", "DIGITSB"}
    assert {args.model_name for args in usual.values()} == {"cnn", "resnet18"}
    for name in having("dataset", "never_augmented"):
        with pytest.raises(InputError, match=f"--augment standard is not for {name}: a flipped or shifted"):
            resolve({"dataset": name, "augment": "standard"})


def test_a_dataset_of_one_domain_is_refused_before_it_is_looked_for():
    with pytest.raises(InputError, match="CIFAR100 has one domain; DIGITS, DIGITSA, DIGITSB have several") as caught:
        resolve({"dataset": "CIFAR100", "shift": "feature"})
    assert "\n" not in str(caught.value)


def test_help_tells_what_is_registered():
    text = " ".join(build_parser().format_help().split())
    words = {name: " ".join(option.help().split()) for name, option in all_options().items() if callable(option.help)}
    assert {"dataset", "model_name", "augment", "norm", "pretrained", "partition"} <= set(words)
    assert all(re.sub(r"(?<=-) | ", "", told) in re.sub(r"(?<=-) | ", "", text) for told in words.values())
    assert "cnn for DIGITS, DIGITSA, DIGITSB; else resnet18" in words["model_name"]


# --------------------------------------------------------------------------------------------------------------------
# A dataset in a file

PLUGIN = '''
from fedmerge.datasets.fashion_mnist import _idx
from fedmerge.datasets.images import Images
from fedmerge.files import DATA, read_bytes
from fedmerge.registry import dataset


@dataset("stripes", model="cnn", download={{"stripes/images.gz": ("{url}", "{md5}")}}, then="python sort.py")
def load_stripes(root, seed):
    """images that are all of one grey"""
    images = _idx(read_bytes(root / "stripes" / "images.gz", DATA), "images")[:, None]
    whole = Images(images, (images[:, 0, 0, 0] // 64).long())
    return whole[:-8], whole[-8:], 4
'''


@pytest.fixture
def stripes(tmp_path, monkeypatch):
    """A function that leaves the plugin, with the MD5 of its published file or another."""
    images = torch.arange(0, 256, 4, dtype=torch.uint8).repeat(2)[:, None, None].expand(-1, 8, 8)
    published = tmp_path / "published.gz"
    published.write_bytes(idx(images.numpy()))
    monkeypatch.chdir(tmp_path)

    def leave(md5=None):
        md5 = md5 or hashlib.md5(published.read_bytes()).hexdigest()
        path = tmp_path / f"mine_{md5[:4]}.py"
        path.write_text(PLUGIN.format(url=published.as_uri(), md5=md5))
        use_plugins([path])
        return path

    return leave


def test_a_dataset_is_one_file_and_is_fetched_and_trained_on(stripes, capsys, tmp_path):
    stripes()
    data.main(["--download", "stripes", "--data_root", "files"])
    assert "stripes is in files; now run 'python sort.py --data_root files'" in capsys.readouterr().out
    (tmp_path / "published.gz").unlink()
    data.main(["--download", "stripes", "--data_root", "files"])  # is there already
    settings = {**QUICK, "dataset": "stripes", "data_root": "files", "n_clients": 4, "device": "cpu"}
    run = prepare(resolve(settings))
    assert run.settings.model_name == "cnn"
    assert (len(run.splits.train), run.splits.n_classes) == (108, 4)
    with pytest.raises(InputError, match="--shift feature: stripes has one domain"):
        resolve({**settings, "shift": "feature"})


def test_a_file_of_another_sum_is_not_kept(stripes, capsys, tmp_path):
    stripes(md5="0" * 32)
    with pytest.raises(SystemExit) as caught:
        data.main(["--download", "stripes", "--data_root", "files"])
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert re.search(r"data\.py: error: stripes could not be fetched: .* its MD5 is \w{32}, not 0{32}\n$", told)
    assert not list(tmp_path.glob("files/**/*.*"))


def test_what_can_be_fetched_is_what_says_how(capsys):
    with pytest.raises(SystemExit):
        data.main(["--help"])
    choices = re.search(r"--download \{(.*?)\}", capsys.readouterr().out)[1].split(",")
    assert choices == ["CIFAR10", "CIFAR100", "FashionMNIST", "TinyImageNet"]
