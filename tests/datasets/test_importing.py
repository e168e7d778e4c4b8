"""Datasets of other libraries as an .npz: made ones in each library's form, and what is refused."""

import shutil
import sys
import types

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import data
from fedmerge import files
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
    import_dataset("torchvision:Made", {"side": "20", "train": "test", "test": "trainval"}, tmp_path, size=12)
    assert load_dataset("Made", tmp_path, 0, validation=False).train.images.shape == (10, 3, 12, 12)


def test_what_is_more_than_is_read_of_a_file_is_not_written(tmp_path, torchvision_has, monkeypatch):
    torchvision_has(Made)
    monkeypatch.setattr(files, "ARCHIVE", 2**16 + 40 * 12 * 12 * 3)  # labels and classes are too much
    with pytest.raises(InputError, match="has more than the 82816 bytes that are read of such a file"):
        import_dataset("torchvision:Made", {}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_import_left_is_removed(tmp_path, torchvision_has):
    torchvision_has(Made)
    (tmp_path / ".Made.npz.1.tmp").write_bytes(b"half")
    import_dataset("torchvision:Made", {}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["Made.npz"]


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
    for options in ({"split": "train"}, {"streaming": "true"}):
        with pytest.raises(InputError, match="leave out split= and streaming="):
            import_dataset(hugging_face, options, tmp_path, "other")
    with pytest.raises(InputError, match="cannot be trained on and tested on"):
        import_dataset(hugging_face, {"train": "train", "test": "train"}, tmp_path, "other")


def test_a_part_is_never_trained_on_and_tested_on(tmp_path, hugging_face, monkeypatch):
    """Of a folder whose one part is called test, a fifth is tested on; the parts of another are each used once."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "hub" / "train.parquet").rename(tmp_path / "hub" / "test.parquet")
    with pytest.raises(InputError, match="its parts are test: say which is meant, train=NAME"):
        import_dataset(hugging_face, {}, tmp_path, "other")
    words = import_dataset(hugging_face, {"train": "test"}, tmp_path, "one")
    assert "32 training and 8 test images" in words
    shutil.copy(tmp_path / "hub" / "test.parquet", tmp_path / "hub" / "validation.parquet")
    words = import_dataset(hugging_face, {"train": "validation"}, tmp_path, "two")
    assert "40 training and 40 test images" in words


def test_whose_an_image_is_must_be_known_and_is_told(tmp_path, torchvision_has):
    class Owned(Made):
        owner = None

        def __getitem__(self, place):
            return *super().__getitem__(place), self.owner or f"{self.places[0]}"

    torchvision_has(Owned)
    words = import_dataset("torchvision:Owned", {}, tmp_path)
    assert "12 pixels, 1 domains, and 1 in the test images alone" in words
    Owned.__getitem__ = lambda self, place: (*Made.__getitem__(self, place), None)
    with pytest.raises(InputError, match="train image 0 has no domain"):
        import_dataset("torchvision:Owned", {}, tmp_path, "other")


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
    with pytest.raises(InputError, match="its only option is size=28 or 64"):
        import_dataset("medmnist:madmnist", {"size": "32"}, tmp_path)
    import_dataset("medmnist:madmnist", {}, tmp_path / "new")
    splits = load_dataset("madmnist", tmp_path / "new", 0, validation=False)
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
        ("torchvision:SVHN", ["--as", "a_b"], "the name 'a_b' is not one of letters"),
        ("hf:.", [], "the name '' is not one of letters"),
        ("torchvision:VisionDataset", [], "torchvision.datasets has no VisionDataset"),
        ("torchvision:wrap_dataset_for_transforms_v2", ["--as", "wrap"], "torchvision.datasets has no wrap"),
        ("torchvision:Made", ["train=test", "test=test"], "the part test cannot be trained on and tested on"),
        ("torchvision:Undivided", ["train=all"], "its parts have no names: leave out train="),
        ("torchvision:Cut", [], "train image 7: image file is truncated"),
        ("torchvision:Lost", [], "could not be fetched, nor is it in"),
        ("torchvision:Single", [], "has no test images with one image a class"),
        ("torchvision:Made", ["--as", "folder"], "folder is a dataset of this name"),
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

    class Cut(Made):
        def __getitem__(self, place):
            if place == 7:
                raise OSError("image file is truncated")
            return super().__getitem__(place)

    class Lost(Made):
        def __init__(self, root, split="train", download=False):
            raise ModuleNotFoundError("No module named 'lmdb'")

    class Single(Undivided):
        def __getitem__(self, place):
            return super().__getitem__(place)[0], place

    for cls in (Made, Undivided, Bad, Deep, Strange, Cut, Lost, Single, type("Large", (Made,), {})):
        torchvision_has(cls)
    (tmp_path / "there.npz").write_bytes(b"mine")
    (tmp_path / "folder" / "domain" / "class").mkdir(parents=True)
    (tmp_path / "folder" / "domain" / "class" / "1.png").write_bytes(b"")
    with pytest.raises(SystemExit):
        data.main(["--import", given, *more, "--data_root", str(tmp_path)])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert why in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "there.npz"]
    assert (tmp_path / "there.npz").read_bytes() == b"mine"


def test_options_of_the_import_are_of_nothing_else(capsys):
    with pytest.raises(SystemExit):
        data.main(["--download", "CIFAR10", "--as", "mine"])
    assert "--as and --image_size are of --import" in capsys.readouterr().err


def test_who_names_one_as_a_dataset_is_told_how(tmp_path):
    assert set(IMPORTED) == set(KINDS)
    with pytest.raises(InputError, match=r"first: python data\.py --import hf:a/b --data_root"):
        resolve({"dataset": "hf:a/b", "data_root": str(tmp_path)})
