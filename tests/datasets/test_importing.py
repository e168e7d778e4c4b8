"""Datasets of other libraries as an .npz: made ones in each library's form, and what is refused."""

import sys
import types

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import data
from fedmerge.config.own_data import IMPORTED
from fedmerge.config.resolve import resolve
from fedmerge.datasets import load_dataset
from fedmerge.datasets.arrays import load_arrays
from fedmerge.datasets.importing import KINDS, import_dataset
from fedmerge.errors import InputError

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (40, 12, 12, 3), dtype=np.uint8)


class Made(torchvision.datasets.VisionDataset):
    """One of torchvision's, in which parts are called by `split`, with labels from 3 on."""

    sizes, seen = {"trainval": 30, "test": 10}, []

    def __init__(self, root, split="trainval", side=12, download=False):
        if split not in self.sizes:
            raise ValueError(f"Unknown value '{split}' for argument split")
        super().__init__(root)
        self.seen.append((split, download))
        first = 0 if split == "trainval" else 30
        self.places, self.side = range(first, first + self.sizes[split]), side

    def __len__(self):
        return len(self.places)

    def __getitem__(self, place):
        if place >= len(self):
            raise IndexError
        image = Image.fromarray(X[self.places[place]])
        return image.resize((self.side, 12)) if self.side != 12 else image, 3 + self.places[place] % 3


class Undivided(Made):
    """One of torchvision's that has no parts."""

    def __init__(self, root):
        super().__init__(root)


@pytest.fixture
def torchvision_has(monkeypatch):
    def has(cls):
        monkeypatch.setattr(torchvision.datasets, cls.__name__, cls, raising=False)
        monkeypatch.setattr(torchvision.datasets, "__all__", (*torchvision.datasets.__all__, cls.__name__))

    return has


def test_parts_by_their_names(tmp_path, torchvision_has, monkeypatch):
    torchvision_has(Made)
    monkeypatch.setattr(Made, "seen", [])
    words = import_dataset("torchvision:Made", {}, tmp_path)
    assert words == f"{tmp_path}/Made.npz: 30 training and 10 test images of 3 classes, 12 pixels: --dataset Made"
    assert Made.seen == [("trainval", True), ("test", True)]
    splits = load_dataset("Made", tmp_path, 0, validation=False)
    assert torch.equal(splits.test.images, torch.from_numpy(X[30:]).permute(0, 3, 1, 2))
    assert splits.test.labels.tolist() == [place % 3 for place in range(30, 40)]
    assert np.load(tmp_path / "Made.npz")["classes"].tolist() == ["3", "4", "5"]


def test_a_fifth_is_tested_on_where_there_is_no_part_for_it(tmp_path, torchvision_has):
    torchvision_has(Undivided)
    import_dataset("torchvision:Undivided", {}, tmp_path, "all", size=8)
    splits = load_dataset("all", tmp_path, 0, validation=False)
    assert torch.bincount(splits.test.labels).tolist() == [2, 2, 2]
    assert splits.train.images.shape == (24, 3, 8, 8)


def test_images_that_are_not_square_need_a_size(tmp_path, torchvision_has):
    torchvision_has(Made)
    with pytest.raises(InputError, match="train image 0 has 20 x 12 pixels: --image_size N"):
        import_dataset("torchvision:Made", {"side": "20"}, tmp_path)
    assert list(tmp_path.iterdir()) == []
    import_dataset("torchvision:Made", {"side": "20", "train": "test"}, tmp_path, size=12)
    assert load_dataset("Made", tmp_path, 0, validation=False).train.images.shape == (10, 3, 12, 12)


def write_idx(path, array):
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes())


def test_grey_images_of_a_set_that_torchvision_has(tmp_path):
    raw = tmp_path / "KMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", 30), ("t10k", 10)):
        write_idx(raw / f"{part}-images-idx3-ubyte", X[:n, ..., 0])
        write_idx(raw / f"{part}-labels-idx1-ubyte", (np.arange(n) % 3).astype(np.uint8))
    assert data.main(["--import", "torchvision:KMNIST", "--data_root", str(tmp_path)]) is None
    splits = load_dataset("KMNIST", tmp_path, 0)  # the file, not torchvision's folder
    assert (len(splits.train), len(splits.val), len(splits.test)) == (27, 3, 10)
    assert torch.equal(load_arrays(tmp_path / "KMNIST.npz")[0].images, torch.from_numpy(X[:30, None, :, :, 0]))


@pytest.fixture
def hugging_face(tmp_path):
    """A folder of Parquet as `datasets` reads it: 40 images by four writers, no test part."""
    datasets = pytest.importorskip("datasets", reason="Hugging Face's package is not installed: pip install datasets")
    columns = {"picture": datasets.Image(), "digit": datasets.ClassLabel(names=["one", "two"])}
    features = datasets.Features(columns | {"writer": datasets.Value("string")})
    rows = {
        "picture": [Image.fromarray(x) for x in X],
        "digit": [place % 2 for place in range(40)],
        "writer": [f"w{place // 10}" for place in range(40)],
    }
    (tmp_path / "hub").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "hub" / "train.parquet")
    return f"hf:{tmp_path / 'hub'}"


def test_natural_users_of_hugging_face(tmp_path, hugging_face, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = import_dataset(hugging_face, {"domain": "writer"}, tmp_path, "writers")
    assert "32 training and 8 test images of 2 classes, 12 pixels, 4 domains" in words
    splits = load_dataset("writers", tmp_path, 0, validation=False)
    assert torch.bincount(splits.test.domains * 2 + splits.test.labels).tolist() == [1] * 8
    where = [
        (torch.from_numpy(X).permute(0, 3, 1, 2) == one).flatten(1).all(1).nonzero().item()
        for one in splits.train.images
    ]
    assert splits.train.domains.tolist() == [place // 10 for place in where]
    with pytest.raises(InputError, match="its columns are picture, digit, writer: say which is meant, label=NAME"):
        import_dataset(hugging_face, {"label": "class"}, tmp_path, "other")
    with pytest.raises(InputError, match="its parts are train: say which is meant, test=NAME"):
        import_dataset(hugging_face, {"test": "held"}, tmp_path, "other")


class MadeOfMed:
    """One of MedMNIST's."""

    def __init__(self, part, download, root, size=28):
        self.places = {"train": range(20), "val": range(20, 30), "test": range(30, 40)}[part]

    def __iter__(self):
        return ((Image.fromarray(X[place]), np.array([place % 3])) for place in self.places)


def test_medmnist_is_trained_on_its_validation_images_too(tmp_path, monkeypatch):
    info = {
        "madmnist": {"task": "multi-class", "python_class": "Made"},
        "chestmnist": {"task": "multi-label, binary-class", "python_class": "Made"},
    }
    monkeypatch.setitem(sys.modules, "medmnist", types.SimpleNamespace(INFO=info, Made=MadeOfMed))
    import_dataset("medmnist:madmnist", {}, tmp_path)
    splits = load_dataset("madmnist", tmp_path, 0, validation=False)
    assert (len(splits.train), len(splits.test)) == (30, 10)
    for name, why in (("chestmnist", "several labels an image"), ("pathmnist", "medmnist has no pathmnist")):
        with pytest.raises(InputError, match=why):
            import_dataset(f"medmnist:{name}", {}, tmp_path)


@pytest.mark.parametrize(
    ("given", "more", "why"),
    [
        ("SVHN", [], "begins with none of torchvision:NAME, hf:NAME, medmnist:NAME"),
        ("hf:", [], "begins with none of"),
        ("torchvision:SVHM", [], "no SVHM (did you mean SVHN?)"),
        ("torchvision:CIFAR10", [], "the name CIFAR10 is a dataset of this program: give another with --as"),
        ("torchvision:SVHN", ["--as", "a_b"], "the name a_b has more than letters"),
        ("torchvision:EMNIST", [], "split"),
        ("torchvision:Made", ["nothing=1"], "unexpected keyword argument 'nothing'"),
        ("torchvision:Made", ["test"], "options, NAME=VALUE, not test"),
        ("torchvision:Made", ["test=held"], "Unknown value 'held'"),
        ("torchvision:Made", ["--as", "there"], "there.npz is there already"),
        ("torchvision:Bad", [], "train image 0 has the label [1, 2], which names no class"),
        ("torchvision:Deep", [], "train image 0 is no image of 8 bits"),
        ("torchvision:Large", ["--image_size", "20000"], "a smaller --image_size"),
        ("torchvision:Strange", [], "no training image has the label 9, but test images"),
    ],
)
def test_what_is_refused_is_one_line(tmp_path, torchvision_has, capsys, given, more, why):
    class Bad(Made):
        def __getitem__(self, place):
            return super().__getitem__(place)[0], [1, 2]

    class Deep(Made):
        def __getitem__(self, place):
            return Image.fromarray(np.zeros((12, 12), np.int32)), 0

    class Strange(Made):
        def __getitem__(self, place):
            image, label = super().__getitem__(place)
            return image, 9 if self.places[place] == 35 else label

    for cls in (Made, Bad, Deep, Strange, type("Large", (Made,), {})):
        torchvision_has(cls)
    (tmp_path / "there.npz").write_bytes(b"mine")
    with pytest.raises(SystemExit):
        data.main(["--import", given, *more, "--data_root", str(tmp_path)])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert why in said
    assert [path.name for path in tmp_path.iterdir()] == ["there.npz"]
    assert (tmp_path / "there.npz").read_bytes() == b"mine"


def test_options_of_the_import_are_of_nothing_else(capsys):
    with pytest.raises(SystemExit):
        data.main(["--labels", "DIGITS", "--as", "mine"])
    assert "--as and --image_size are of --import" in capsys.readouterr().err


def test_who_names_one_as_a_dataset_is_told_how(tmp_path):
    assert set(IMPORTED) == set(KINDS)
    with pytest.raises(InputError, match=r"first: python data\.py --import hf:a/b --data_root"):
        resolve({"dataset": "hf:a/b", "data_root": str(tmp_path)})
