"""A dataset by its name: what is missing, the validation set, fingerprints, normalisation, sizes."""

import pickle
from dataclasses import replace

import pytest
import torch
from cifar_files import write_cifar
from conftest import evaluate, train_rounds

from fedmerge import datasets
from fedmerge.config.resolve import resolve
from fedmerge.config.run_name import run_name
from fedmerge.errors import InputError
from fedmerge.registry import DATASETS, said


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


def test_larger_images_are_shrunk_in_memory(root):
    splits = datasets.load_dataset("CIFAR10", root, 0, image_size=16)
    assert splits.train.images.shape[-2:] == splits.test.images.shape[-2:] == (16, 16)
    assert splits.image_size == 16
    assert splits.normalise(splits.test.images[:2]).shape == (2, 3, 16, 16)


def test_smaller_images_stay_as_they_are_and_are_enlarged_by_the_batch():
    """Pixel 5 of 16 lies at 2.25 of 8: nine, three, three and one sixteenth of its four neighbours."""
    own, splits = (datasets.load_dataset("DIGITS", ".", 0, image_size=size) for size in (None, 16))
    assert torch.equal(splits.train.images, own.train.images)
    assert torch.equal(splits.mean, own.mean)
    assert (splits.image_size, own.image_size) == (16, 8)
    large, small = (part.normalise(part.test.images[:3]) for part in (splits, own))
    assert large.shape == (3, 1, 16, 16)
    assert large.is_contiguous(memory_format=torch.channels_last)
    near = small[..., 2:4, 2:4].flatten(1) @ torch.tensor([9.0, 3, 3, 1]) / 16
    assert torch.allclose(large[:, 0, 5, 5], near, atol=1e-6)
    assert torch.allclose(large[..., 0, 0], small[..., 0, 0])


def test_crops_are_drawn_at_the_size_that_the_images_are_kept_in():
    own = datasets.load_dataset("DIGITS", ".", 0)
    splits = replace(own, enlarged=16)
    chosen, draws = torch.arange(5), torch.tensor([[8, 0, 0], [4, 4, 1], [0, 8, 1], [4, 4, 0], [1, 2, 0]])
    x, _ = datasets.batch(splits, chosen, draws)
    small, _ = datasets.batch(own, chosen, draws)
    assert torch.equal(x, torch.nn.functional.interpolate(small, (16, 16), mode="bilinear"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        {"algorithm": "las", "localiser": "learned", "graft_epochs": 1},
        {"local": "swad", "bn_recalibrate": True, "model_name": "cnn", "norm": "batch", "min_client_samples": 3},
        {"local": "moon"},
        {"algorithm": "fedbn", "shift": "feature", "n_clients": 5, "participation": 1.0},
    ],
    ids=str,
)
def test_every_way_of_training_and_judging_sees_the_enlarged_images(experiment, method):
    run = experiment(image_size=16, **{"model_name": "lenet", **method})  # which refuses smaller ones
    train_rounds(run)
    assert run.splits.train.images.shape[-1] == 8
    assert "_image_size=16" in run.name
    assert run.settings.image_size == 16
    evaluate(run, run.splits.test)
    assert run.evaluator.columns(run.server, run.clients.parts)


def test_the_size_that_images_have_is_none_that_was_asked_for():
    for dataset, size in (("CIFAR10", 32), ("DIGITS", 8), ("TinyImageNet", 64), ("FashionMNIST", 28)):
        assert resolve({"dataset": dataset, "image_size": size}) == resolve({"dataset": dataset})
        assert "_image_size=16" in run_name(resolve({"dataset": dataset, "image_size": 16}))


@pytest.mark.parametrize("name", [name for name in DATASETS if said("dataset", name, "bundled")])
def test_bundled_images_have_the_size_that_they_are_said_to_have(name):
    assert datasets.load_dataset(name, ".", 0).image_size == said("dataset", name, "pixels")


def test_feature_shift_needs_domains(root):
    with pytest.raises(InputError, match="CIFAR10 has one domain"):
        datasets.load_dataset("CIFAR10", root, 0, shift="feature")
