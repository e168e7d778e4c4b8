"""Readers on files the tests write themselves, splits by their laws, batches and augmentation by slow twins."""

import gzip
import io
import os
import pickle
import tarfile
from itertools import islice

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import keys
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedmerge import datasets
from fedmerge.datasets import readers
from fedmerge.errors import InputError
from fedmerge.randomness import generator

# --------------------------------------------------------------------------------------------------------------------
# CIFAR-10


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its str, as in the published batches."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_str(self, value):
        self.write(b"T" + len(value).to_bytes(4, "little") + value)

    dispatch[bytes] = save_str


def pickled(value, pickler=Python2Pickler, protocol=2):
    file = io.BytesIO()
    pickler(file, protocol).dump(value)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def batch(n, seed):
    rng = np.random.default_rng(seed)
    return {
        b"labels": [int(y) for y in rng.integers(10, size=n)],
        b"data": rng.integers(256, size=(n, 3072), dtype="u1"),
    }


@pytest.fixture
def cifar(tmp_path):
    """A folder of the published layout with 20 images in each of two training batches and 10 test images."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name, n, seed in (("data_batch_1", 20, 1), ("data_batch_2", 20, 2), ("test_batch", 10, 3)):
        (folder / name).write_bytes(pickled(batch(n, seed)))
    return tmp_path


def test_cifar_is_read_pixel_for_pixel_and_a_foreign_sum_is_said(cifar, capsys):
    train, test, n_classes = datasets.load_cifar10(cifar, seed=0)
    warned = capsys.readouterr().err
    assert "MD5 differs" in warned
    assert "data_batch_3, data_batch_4, data_batch_5 missing" in warned
    assert (len(train), len(test), n_classes) == (40, 10, 10)
    pixels = np.concatenate([batch(20, 1)[b"data"], batch(20, 2)[b"data"]])
    assert train.images.dtype == torch.uint8
    assert train.images[25, 2, 31, 7] == pixels[25, 2 * 1024 + 31 * 32 + 7]
    assert train.labels.tolist() == batch(20, 1)[b"labels"] + batch(20, 2)[b"labels"]


@pytest.mark.parametrize("place", readers.CIFAR_ARCHIVES["CIFAR10"])
def test_cifar_is_read_from_its_archive_in_every_place(cifar, tmp_path, place):
    expected, _, _ = datasets.load_cifar10(cifar, seed=0)
    archive = tmp_path / "other" / place
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(cifar / "cifar-10-batches-py", "cifar-10-batches-py")
    train, _, _ = datasets.load_cifar10(tmp_path / "other", seed=0)
    assert torch.equal(train.images, expected.images)
    archive.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(InputError, match="not a whole tar"):
        datasets.load_cifar10(tmp_path / "other", seed=0)


def test_an_archive_that_unpacks_to_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_UNPACKED", 2**20)
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 2**24  # which tarfile reads into memory at once
    content = header.tobuf() + bytes(2**24)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(gzip.compress(content))
    with pytest.raises(InputError, match=r"not a whole tar\.gz archive \(unpacks to more than 1048576 bytes"):
        datasets.load_cifar10(tmp_path, seed=0)


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


BAD = {
    "truncated": lambda: pickled(batch(20, 1))[:30000],
    "empty": lambda: b"",
    "not a pickle": lambda: b"hello world",
    "os.system": lambda: pickle.dumps(Evil()),
    "os.system inside": lambda: pickle.dumps({b"data": Evil(), b"labels": []}),
    "a NumPy function": lambda: pickle.dumps({b"data": np.load, b"labels": []}),
    "other keys": lambda: pickled({b"images": [1]}),
    "a list": lambda: pickled([1, 2]),
    "fewer labels": lambda: pickled(batch(20, 1) | {b"labels": [0] * 19}),
    "floats": lambda: pickled(batch(20, 1) | {b"data": np.zeros((20, 3072))}),
    "labels beyond 9": lambda: pickled(batch(20, 1) | {b"labels": [10] * 20}),
    "words for labels": lambda: pickled(batch(20, 1) | {b"labels": [b"cat"] * 20}),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_batch_is_refused_in_one_line(cifar, kind, monkeypatch):
    monkeypatch.chdir(cifar)
    (cifar / "cifar-10-batches-py" / "data_batch_2").write_bytes(BAD[kind]())
    with pytest.raises(InputError) as caught:
        datasets.load_dataset("CIFAR10", cifar, seed=0)
    assert "data_batch_2" in str(caught.value) or "outside 0..9" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (cifar / "evil").exists()


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100", "FashionMNIST", "TinyImageNet"])
def test_missing_data_names_the_command_and_the_way_without(tmp_path, name):
    with pytest.raises(InputError, match=r"python .*\.py .*--data_root .*--dataset DIGITS") as caught:
        datasets.load_dataset(name, tmp_path, seed=0)
    assert "\n" not in str(caught.value)


def test_a_folder_without_test_batch_is_refused(cifar):
    (cifar / "cifar-10-batches-py" / "test_batch").unlink()
    with pytest.raises(InputError, match="holds no test batch"):
        datasets.load_cifar10(cifar, seed=0)


def test_cifar10t_is_a_thousand_by_seed(cifar):
    (cifar / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickled(batch(1500, 1)))
    sets = [datasets.load_cifar10_thousand(cifar, seed)[0] for seed in (0, 0, 1)]
    assert [len(s) for s in sets] == [1000] * 3
    assert torch.equal(sets[0].images, sets[1].images)
    assert not torch.equal(sets[0].images, sets[2].images)


# --------------------------------------------------------------------------------------------------------------------
# CIFAR-100 and FashionMNIST


def test_cifar100_is_read_with_its_fine_labels(tmp_path, capsys):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    rng = np.random.default_rng(0)
    truth = {}
    for name, n in (("train", 30), ("test", 12)):
        labels = {b"fine_labels": rng.integers(100, size=n).tolist(), b"coarse_labels": [0] * n}
        truth[name] = batch(n, 5) | labels
        (folder / name).write_bytes(pickled(truth[name]))
    (folder / "meta").write_bytes(b"never read")
    splits = datasets.load_dataset("CIFAR100", tmp_path, seed=0)
    assert "MD5 differs" in capsys.readouterr().err
    assert (len(splits.train), len(splits.val), splits.n_classes) == (27, 3, 100)
    assert splits.test.labels.tolist() == truth["test"][b"fine_labels"]
    assert splits.test.images[3, 1, 2, 5] == truth["test"][b"data"][3, 1024 + 2 * 32 + 5]


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return gzip.compress(header + array.tobytes())


@pytest.fixture
def fashion(tmp_path):
    """The four files of FashionMNIST where torchvision puts them: 40 and 10 images."""
    folder, rng = tmp_path / "FashionMNIST" / "raw", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for prefix, n in (("train", 40), ("t10k", 10)):
        images, labels = rng.integers(256, size=(n, 28, 28), dtype="u1"), rng.integers(10, size=n, dtype="u1")
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
    return tmp_path


def test_fashion_mnist_is_read_as_torchvision_reads_it(fashion, capsys):
    train, test, n_classes = datasets.load_fashion_mnist(fashion, seed=0)
    assert "MD5 differs" in capsys.readouterr().err
    assert (train.images.shape, len(test), n_classes) == ((40, 1, 28, 28), 10, 10)
    folder = fashion / "FashionMNIST" / "raw"
    for path in folder.glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    theirs = torchvision.datasets.FashionMNIST(fashion, train=True)
    assert torch.equal(train.images[:, 0], theirs.data)
    assert torch.equal(train.labels, theirs.targets)


BAD_IDX = {
    "empty": b"",
    "not gzip": b"hello world",
    "truncated": idx(np.zeros((40, 28, 28), "u1"))[:-20],
    "a bomb": gzip.compress(bytes([0, 0, 8, 3]) + b"\xff" * 12),
    "no sizes": gzip.compress(bytes([0, 0, 8, 0])),
    "sizes cut off": gzip.compress(bytes([0, 0, 8, 3, 0, 0])),
    "of ints": gzip.compress(bytes([0, 0, 12, 1, 0, 0, 0, 0])),
    "fewer images": idx(np.zeros((39, 28, 28), "u1")),
    "flat images": idx(np.zeros((40, 784), "u1")),
    "images of 3 pixels": idx(np.zeros((40, 3, 3), "u1")),
    "images of 513 pixels": idx(np.zeros((40, 513, 513), "u1")),
}


@pytest.mark.parametrize("kind", BAD_IDX)
def test_a_bad_idx_file_is_refused_in_one_line(fashion, kind):
    (fashion / "FashionMNIST" / "raw" / "train-images-idx3-ubyte.gz").write_bytes(BAD_IDX[kind])
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz") as caught:
        datasets.load_dataset("FashionMNIST", fashion, seed=0)
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------------------------------
# Digits and the validation set


def test_digits_are_split_into_three_disjoint_sets():
    splits = datasets.load_dataset("DIGITS", ".", seed=0)
    sets = [splits.train, splits.val, splits.test]
    assert [len(s) for s in sets] == [1294, 143, 360]
    assert len(set.union(*map(keys, sets))) == sum(len(keys(s)) for s in sets)
    share = torch.bincount(splits.test.labels) / 360
    assert share.max() - share.min() < 0.01  # stratified


def test_the_seed_moves_the_validation_set_and_never_the_test_set():
    a, b, c = (datasets.load_dataset("DIGITS", ".", seed) for seed in (0, 0, 1))
    assert torch.equal(a.val.images, b.val.images)
    assert not torch.equal(a.val.images, c.val.images)
    assert torch.equal(a.test.images, c.test.images)


def test_a_fingerprint_tells_other_samples_and_not_other_seeds(cifar):
    first = datasets.load_dataset("CIFAR10", cifar, 0)
    assert datasets.load_dataset("CIFAR10", cifar, 1, image_size=16).fingerprint == first.fingerprint
    path = cifar / "cifar-10-batches-py" / "test_batch"
    batch = pickle.loads(path.read_bytes(), encoding="bytes")
    batch[b"labels"][0] ^= 1
    path.write_bytes(pickle.dumps(batch))
    assert datasets.load_dataset("CIFAR10", cifar, 0).fingerprint != first.fingerprint
    batch[b"labels"][0] ^= 1
    batch[b"data"][0, 0] ^= 1
    path.write_bytes(pickle.dumps(batch))
    assert datasets.load_dataset("CIFAR10", cifar, 0).fingerprint != first.fingerprint


def test_normalised_training_images_have_mean_0_and_deviation_1():
    splits = datasets.load_dataset("DIGITS", ".", seed=0)
    x = splits.normalise(splits.train.images)
    assert abs(x.mean()) < 1e-4
    assert abs(x.std() - 1) < 1e-3
    slow = (splits.train.images / 255 - splits.mean[:, None, None]) / splits.std[:, None, None]
    assert torch.allclose(x, slow, atol=1e-5)


# --------------------------------------------------------------------------------------------------------------------
# Batches


@given(n=st.integers(1, 300), size=st.integers(1, 70))
def test_batches_cover_everything_once_and_leave_no_single_sample(n, size):
    bounds = datasets.batch_bounds(n, size)
    assert [begin for begin, _ in bounds] == [0, *(end for _, end in bounds)][:-1]
    assert bounds[-1][1] == n
    sizes = [end - begin for begin, end in bounds]
    assert all(s <= size + 1 for s in sizes)
    assert 1 not in sizes or n == 1 or set(sizes) == {size}


def test_every_epoch_is_another_order_of_the_same_samples(experiment):
    exp = experiment()
    epochs = 3
    seen = list(datasets.client_batches(exp.splits, exp.parts[0], 16, epochs, generator(0, "x")))
    images = torch.cat([x for x, _ in seen]).chunk(epochs)
    labels = torch.cat([y for _, y in seen]).chunk(epochs)
    own = exp.splits.train.labels[exp.parts[0]]
    assert all(torch.equal(y.sort().values, own.sort().values) for y in labels)
    assert not torch.equal(images[0], images[1])
    assert torch.allclose(images[0].sum(0), images[1].sum(0), atol=1e-3)
    assert not torch.equal(labels[0], own)


def test_augmentation_equals_padding_cropping_and_flipping_one_by_one():
    g = torch.Generator().manual_seed(0)
    images = torch.randint(256, (50, 3, 12, 10), dtype=torch.uint8, generator=g)
    draws = torch.stack([torch.randint(n, (50,), generator=g) for n in (9, 9, 2)], dim=1)
    expected = []
    for image, (down, right, flip) in zip(images, draws.tolist(), strict=True):
        crop = F.pad(image, [4] * 4)[:, down : down + 12, right : right + 10]
        expected.append(crop.flip(-1) if flip else crop)
    assert torch.equal(datasets.augment(images, draws), torch.stack(expected))


@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("n_steps", [1, 3, 4, 9, 50])
def test_fewer_steps_are_the_first_ones_and_draw_no_more_than_they_need(augmented, n_steps, monkeypatch):
    splits = datasets.load_dataset("DIGITS", ".", 0)
    made = []
    for limit in (None, n_steps):
        choices = datasets.client_choices(splits, torch.arange(25), 8, 5, generator(0, "x"), augmented, limit)
        made.append([t.tolist() for pair in islice(choices, n_steps) for t in pair if t is not None])
    assert made[0] == made[1]
    stack, kept = torch.stack, []
    monkeypatch.setattr(torch, "stack", lambda orders: kept.append(len(orders)) or stack(orders))
    next(datasets.client_choices(splits, torch.arange(25), 8, 10**6, generator(0, "x"), n_steps=n_steps))
    assert kept == [-(-n_steps // 3)]  # the last sample left over joins the third batch


def test_augmented_batches_draw_for_each_sample_and_epoch():
    image = torch.arange(3 * 32 * 32).remainder(251).to(torch.uint8).view(1, 3, 32, 32)
    same = datasets.Images(image.repeat(200, 1, 1, 1), torch.arange(200) % 10)
    splits = datasets.Splits(same, same, same, 10, torch.zeros(3), torch.ones(3))
    kinds = [
        {
            x.numpy().tobytes()
            for x in torch.cat([x for x, _ in datasets.client_batches(splits, torch.arange(200), 32, 1, g, True)])
        }
        for g in (generator(0, "a"), generator(0, "b"))
    ]
    assert all(len(k) > 100 for k in kinds)  # of 9 * 9 * 2 = 162


def test_resized_images_keep_their_look():
    ramp = torch.arange(64, dtype=torch.uint8).mul(4).expand(2, 3, 64, 64)
    small = datasets.resize(ramp, 32)
    assert small.shape == (2, 3, 32, 32)
    assert small.dtype == torch.uint8
    inside = small[0, 0, 5, 2:-2].int()
    assert (inside - torch.arange(32)[2:-2].mul(8).add(2)).abs().max() <= 1  # each the mean of two neighbours
    flat = datasets.resize(torch.full((1, 1, 8, 8), 200, dtype=torch.uint8), 16)
    assert flat.eq(200).all()
    splits = datasets.load_dataset("DIGITS", ".", 0, image_size=16)
    assert splits.train.images.shape[-2:] == splits.test.images.shape[-2:] == (16, 16)


# --------------------------------------------------------------------------------------------------------------------
# Domains


def test_the_domains_of_the_digits_by_hand():
    plain = datasets.load_dataset("DIGITS", ".", 0)
    splits = datasets.load_dataset("DIGITS", ".", 0, shift="feature")
    assert splits.domains == ("clean", "inverted", "blurred", "rotated", "noisy")
    for part in ("train", "val", "test"):
        one, all_five = getattr(plain, part), getattr(splits, part)
        assert torch.equal(all_five.labels, one.labels.repeat(5))
        views = [all_five.images[all_five.domains == d][7, 0].int() for d in range(5)]
        image = one.images[7, 0].int()
        assert torch.equal(views[0], image)
        assert torch.equal(views[1], 240 - image)
        assert views[2][3, 4] == round(image[2:5, 3:6].float().mean().item())
        assert all(views[3][7 - j, i] == image[i, j] for i in range(8) for j in range(8))
        noise = (all_five.images[all_five.domains == 4].float() - one.images)[one.images == 120]
        assert 50 < noise.std() < 70
    other = datasets.load_dataset("DIGITS", ".", 1, shift="feature")
    assert torch.equal(other.test.images, splits.test.images)


def test_the_two_halves_of_the_digits_are_of_different_writers():
    a, b = (datasets.load_dataset(f"DIGITS{half}", ".", 0, shift="feature") for half in "AB")
    whole = datasets.load_dataset("DIGITS", ".", 0)
    of = {part: keys(getattr(whole, part)) for part in ("train", "val", "test")}
    halves = [[keys(getattr(half, part)) for part in ("train", "val", "test")] for half in (a, b)]
    seen = [pixels for half in halves for part in half for pixels in part]
    assert len(seen) == len(set(seen))  # nobody's digit is in two places
    assert set(seen) == set.union(*of.values())
    assert a.domains == tuple(f"writer {w}" for w in (0, 2, 4, 6, 8))
    assert b.domains == tuple(f"writer {w}" for w in (1, 3, 5, 7, 9))
    for half in (a, b):
        counts = (10 * half.train.domains + half.train.labels).bincount(minlength=50)
        assert (counts > 0).all()  # every writer writes every digit
    again = datasets.load_dataset("DIGITSB", ".", 0)
    assert torch.equal(again.train.images, b.train.images)


def test_digits_of_one_writer_are_alike():
    """Images of one class lie nearer to the mean of their writer's than to that of the class."""
    b = datasets.load_dataset("DIGITSB", ".", 0).train
    images = b.images.flatten(1).float()
    inside = around = 0.0
    for label in range(10):
        own = b.labels == label
        around += (images[own] - images[own].mean(0)).square().sum()
        for domain in range(5):
            both = own & (b.domains == domain)
            inside += (images[both] - images[both].mean(0)).square().sum()
    assert inside < 0.75 * around


@pytest.fixture
def two_domains(tmp_path):
    """data/pets/{drawn,real}/{cat,dog}: 10 small PNGs each; the real ones 40 x 20 and grey, the drawn ones 24 x 24."""
    rng = np.random.default_rng(0)
    for domain, shape in (("drawn", (24, 24, 3)), ("real", (20, 40))):
        for pet in ("cat", "dog"):
            folder = tmp_path / "pets" / domain / pet
            folder.mkdir(parents=True)
            for i in range(10):
                Image.fromarray(rng.integers(256, size=shape, dtype="u1")).save(folder / f"{i}.png")
    (tmp_path / "pets" / "drawn" / "cat" / "notes.txt").write_text("no image")
    return tmp_path


def test_a_folder_of_domains_is_read_resized_and_split(two_domains):
    splits = datasets.load_dataset("pets", two_domains, 0, shift="feature")
    assert splits.domains == ("drawn", "real")
    assert (len(splits.train), len(splits.val), len(splits.test), splits.n_classes) == (29, 3, 8, 2)
    assert splits.train.images.shape[1:] == (3, 32, 32)
    groups = (2 * splits.test.domains + splits.test.labels).bincount()
    assert groups.tolist() == [2, 2, 2, 2]  # a fifth of every class of every domain
    again = datasets.load_dataset("pets", two_domains, 1, shift="feature")
    assert torch.equal(again.test.images, splits.test.images)
    large = datasets.load_dataset("pets", two_domains, 0, image_size=24)
    drawn = keys(large.test[large.test.domains == 0])
    files = (two_domains / "pets" / "drawn").glob("*/*.png")
    exact = {np.array(Image.open(path)).transpose(2, 0, 1).tobytes() for path in files}
    assert {pixels for _, pixels in drawn} <= exact  # of that size already


def test_a_bad_folder_is_refused_in_one_line(two_domains):
    bad = two_domains / "pets" / "real" / "dog" / "3.png"
    bad.write_bytes(bad.read_bytes()[:100])
    with pytest.raises(InputError, match=r"3\.png: not an image") as caught:
        datasets.load_dataset("pets", two_domains, 0)
    assert "\n" not in str(caught.value)
    (two_domains / "none" / "a").mkdir(parents=True)
    with pytest.raises(InputError, match="no images in"):
        datasets.load_dataset("none", two_domains, 0)


def test_feature_shift_needs_domains(cifar):
    with pytest.raises(InputError, match="CIFAR10 has one domain"):
        datasets.load_dataset("CIFAR10", cifar, 0, shift="feature")


def test_an_image_of_absurd_size_is_refused_before_it_is_decoded(two_domains, monkeypatch):
    monkeypatch.setattr(readers, "MAX_PIXELS", 24 * 24 - 1)
    with pytest.raises(InputError, match="24 x 24 pixels are too many"):
        datasets.load_dataset("pets", two_domains, 0)
