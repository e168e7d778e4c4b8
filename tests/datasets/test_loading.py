"""A dataset by its name: what is missing, the validation set, fingerprints, normalisation, sizes."""

import pickle

import pytest
import torch
from cifar_files import write_cifar

from fedmerge import datasets
from fedmerge.errors import InputError


@pytest.fixture
def root(tmp_path):
    return write_cifar(tmp_path)


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100", "FashionMNIST", "TinyImageNet"])
def test_missing_data_names_the_command_and_the_way_without(tmp_path, name):
    with pytest.raises(InputError, match=r"python .*\.py .*--data_root .*--dataset DIGITS") as caught:
        datasets.load_dataset(name, tmp_path, seed=0)
    assert "\n" not in str(caught.value)


def test_the_seed_moves_the_validation_set_and_never_the_test_set():
    a, b, c = (datasets.load_dataset("DIGITS", ".", seed) for seed in (0, 0, 1))
    assert torch.equal(a.val.images, b.val.images)
    assert not torch.equal(a.val.images, c.val.images)
    assert torch.equal(a.test.images, c.test.images)


def test_a_fingerprint_tells_other_samples_and_not_other_seeds(root):
    first = datasets.load_dataset("CIFAR10", root, 0)
    assert datasets.load_dataset("CIFAR10", root, 1, image_size=16).fingerprint == first.fingerprint
    path = root / "cifar-10-batches-py" / "test_batch"
    batch = pickle.loads(path.read_bytes(), encoding="bytes")
    batch[b"labels"][0] ^= 1
    path.write_bytes(pickle.dumps(batch))
    assert datasets.load_dataset("CIFAR10", root, 0).fingerprint != first.fingerprint
    batch[b"labels"][0] ^= 1
    batch[b"data"][0, 0] ^= 1
    path.write_bytes(pickle.dumps(batch))
    assert datasets.load_dataset("CIFAR10", root, 0).fingerprint != first.fingerprint


def test_normalised_training_images_have_mean_0_and_deviation_1():
    splits = datasets.load_dataset("DIGITS", ".", seed=0)
    x = splits.normalise(splits.train.images)
    assert abs(x.mean()) < 1e-4
    assert abs(x.std() - 1) < 1e-3
    slow = (splits.train.images / 255 - splits.mean[:, None, None]) / splits.std[:, None, None]
    assert torch.allclose(x, slow, atol=1e-5)


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


def test_feature_shift_needs_domains(root):
    with pytest.raises(InputError, match="CIFAR10 has one domain"):
        datasets.load_dataset("CIFAR10", root, 0, shift="feature")
