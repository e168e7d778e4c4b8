"""NAME.npz as a dataset: both layouts, what is refused, and a run on one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fedmerge
from fedmerge.config.resolve import resolve
from fedmerge.datasets import load_dataset
from fedmerge.datasets.arrays import load_arrays
from fedmerge.errors import InputError
from fedmerge.simulation.experiment import prepare

RNG = np.random.default_rng(0)
X, Y = RNG.integers(0, 256, (30, 12, 12, 3), dtype=np.uint8), np.arange(30) % 3
KERAS = {"x_train": X[:20], "y_train": Y[:20], "x_test": X[20:], "y_test": Y[20:]}
MED = {
    **{"train_images": X[:15, ..., 0], "train_labels": Y[:15, None], "val_images": X[15:20, ..., 0]},
    **{"val_labels": Y[15:20, None], "test_images": X[20:, ..., 0], "test_labels": Y[20:, None].astype(np.uint8)},
}


def test_both_layouts_are_the_same_data(tmp_path):
    np.savez(tmp_path / "keras.npz", **KERAS)
    np.savez_compressed(tmp_path / "med.npz", **MED)
    train, test, n_classes, domains = load_arrays(tmp_path / "keras.npz")
    assert (n_classes, domains, train.domains) == (3, (), None)
    assert torch.equal(train.images, torch.from_numpy(X[:20]).permute(0, 3, 1, 2))
    assert test.labels.tolist() == Y[20:].tolist()
    grey, test, *_ = load_arrays(tmp_path / "med.npz")  # validation images are trained on
    assert torch.equal(grey.images, train.images[:, :1])
    assert grey.labels.tolist() == Y[:20].tolist()
    assert test.images.shape == (10, 1, 12, 12)


def test_images_have_domains_by_name(tmp_path):
    whose = {"train_domains": np.array(["b", "a"] * 10), "test_domains": np.array(["c", "b"] * 5)}
    np.savez(tmp_path / "mine.npz", **KERAS, **whose)
    splits = load_dataset("mine", tmp_path, 0, validation=False)
    assert splits.domains == ("a", "b", "c")
    assert splits.test.domains.tolist() == [2, 1] * 5
    of_a = splits.train.images[splits.train.domains == 0]
    assert {tuple(image.flatten().tolist()) for image in of_a} == {
        tuple(x.transpose(2, 0, 1).flatten().tolist()) for x in X[1:20:2]
    }


def test_large_numbers_of_users_are_not_one(tmp_path):
    n = 2**53
    whose = {"train_domains": np.arange(n, n + 20, dtype=np.uint64), "test_domains": np.arange(n, n + 10)}
    np.savez(tmp_path / "mine.npz", **KERAS, **whose)
    assert len(load_arrays(tmp_path / "mine.npz")[3]) == 20


@pytest.mark.parametrize(("size", "seen"), [(None, 12), (32, 32), (8, 8)])
def test_images_are_of_the_size_that_is_asked_for(tmp_path, size, seen):
    np.savez(tmp_path / "mine.npz", **KERAS)
    args = resolve({"dataset": "mine", "data_root": str(tmp_path), "image_size": size, "model_name": "cnn"})
    splits = load_dataset(args.dataset, args.data_root, 0, args.image_size)
    assert splits.image_size == seen
    assert splits.normalise(splits.test.images).shape == (10, 3, seen, seen)


def test_the_size_that_images_have_is_no_setting(tmp_path):
    for name, arrays in (("keras", KERAS), ("med", MED)):
        np.savez(tmp_path / f"{name}.npz", **arrays)
        sizes = [resolve({"dataset": name, "data_root": str(tmp_path), "image_size": n}).image_size for n in (12, 16)]
        assert sizes == [None, 16]
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 no more")
    assert resolve({"dataset": "bad", "data_root": str(tmp_path), "image_size": 12}).image_size == 12


def test_images_that_are_too_small_for_a_network_are_the_files_fault(tmp_path):
    small = {name: array[:, :3, :3] if array.ndim > 1 else array for name, array in KERAS.items()}
    np.savez(tmp_path / "small.npz", **small)
    with pytest.raises(InputError, match="--model_name cnn needs images of 4 pixels, not 3"):
        prepare(resolve({"dataset": "small", "data_root": str(tmp_path), "model_name": "cnn", "n_clients": 3}))


def test_a_run_on_one(tmp_path):
    np.savez(tmp_path / "mine.npz", **KERAS)
    run = fedmerge.run(
        algorithm="las", dataset="mine", data_root=str(tmp_path), out=str(tmp_path / "out"), rounds=1, n_clients=3,
        model_name="cnn", batch_size=4, local_steps=2, quiet=True,
    )  # fmt: skip
    assert run.name.startswith("las_mine_iid_0")
    assert run.record["data"]["samples"] == {"train": 18, "val": 2, "test": 10}


WRONG = {
    "x_train is float64": KERAS | {"x_train": X[:20] / 255},
    "x_train is uint8 [20, 12, 11, 3]": KERAS | {"x_train": X[:20, :, :11]},
    "x_train is uint8 [20, 432]": KERAS | {"x_train": X[:20].reshape(20, -1)},
    "y_train is int64 [19], not whole numbers [20]": KERAS | {"y_train": Y[:19]},
    "y_train is float64 [20]": KERAS | {"y_train": Y[:20] / 2},
    "y_test has -1 to 2": KERAS | {"y_test": np.where(Y == 0, -1, Y)[20:]},
    "has x_train, y_train, but not x_train, y_train, x_test, y_test or": {k: KERAS[k] for k in ("x_train", "y_train")},
    "images of training and test differ": KERAS | {"x_test": X[20:, :8, :8]},
    "no training image has the label 1, though": KERAS | {"y_train": np.where(Y == 1, 0, Y)[:20]},
    "train_domains is missing, not text": KERAS | {"test_domains": np.array(list("abcdefghij"))},
    "test_domains is <U1 [9], not text or whole numbers [10]": KERAS
    | {"train_domains": np.arange(20), "test_domains": np.array(list("abcdefghi"))},
    "has no test images": KERAS | {"x_test": X[:0], "y_test": Y[:0]},
    "is no .npz of arrays": KERAS | {"y_test": np.array([{"a": 1}] * 10, dtype=object)},
}


@pytest.mark.parametrize("said", WRONG)
def test_what_is_no_dataset_is_one_line(tmp_path, said):
    np.savez(tmp_path / "mine.npz", **WRONG[said])
    with pytest.raises(InputError) as caught:
        load_dataset("mine", tmp_path, 0)
    assert said in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("npz") / "mine.npz"
    np.savez_compressed(path, **{name: array[:3] for name, array in KERAS.items()})
    return path, path.read_bytes()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_a_dataset_or_refused(whole, data):
    path, good = whole
    cut = st.integers(0, len(good)).map(lambda n: good[:n])
    place = st.tuples(st.integers(0, len(good) - 4), st.binary(min_size=1, max_size=4))
    spoilt = place.map(lambda change: good[: change[0]] + change[1] + good[change[0] + len(change[1]) :])
    path.write_bytes(data.draw(st.one_of(st.binary(max_size=50), cut, spoilt)))
    try:
        train, _, n_classes, _ = load_arrays(path)
    except InputError as error:
        words = str(error)
        if not words.startswith(str(path)):
            raise
    else:
        assert train.images.dtype == torch.uint8
        assert train.labels.unique().tolist() == list(range(n_classes))


@pytest.mark.parametrize(
    ("name", "said"), [("my_data", "rename it, to letters, digits, dots and hyphens"), ("mine.npz", "leave out .npz")]
)
def test_a_name_that_is_meant_is_told(tmp_path, name, said):
    for file in ("my_data.npz", "mine.npz"):
        np.savez(tmp_path / file, **KERAS)
    with pytest.raises(InputError, match=said):
        resolve({"dataset": name, "data_root": str(tmp_path)})


def test_a_member_that_is_no_array_is_one_line(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "mine.npz", "w") as archive:
        for name in KERAS:
            archive.writestr(name, b"no .npy")
    with pytest.raises(InputError, match="x_train is "):
        load_arrays(tmp_path / "mine.npz")


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    from fedmerge import files

    np.savez_compressed(tmp_path / "mine.npz", **{name: np.zeros_like(array) for name, array in KERAS.items()})
    monkeypatch.setattr(files, "ARCHIVE", 5000)
    with pytest.raises(InputError, match="unpacks to"):
        load_arrays(tmp_path / "mine.npz")
