"""Noise on clients' images."""

import torch

from fedmerge.datasets import Images, Splits, with_noise

SHAPE = (3, 8, 8)


def grey(n):
    """Splits of n training images, of one grey each, and some others."""
    images = Images(torch.full((n, *SHAPE), 128, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64))
    return Splits(images, images[:2], images[:3], 1, torch.full((3,), 0.5), torch.ones(3))


def test_the_last_client_has_the_most_noise_and_others_their_share_of_it():
    splits, parts = grey(400), list(torch.randperm(400).split(100))
    noisy = with_noise(splits, parts, 0.1, 0)
    for i, part in enumerate(parts):
        values = noisy.train.images[part].float()
        expected = 25.5 * i / 3
        assert abs(values.std() - (expected**2 + (i > 0) / 12) ** 0.5) <= 0.03 * expected  # rounding adds a twelfth
        assert abs(values.mean() - 128) < 0.5
    assert torch.equal(splits.train.images, grey(400).train.images)  # nobody else's
    assert noisy.test is splits.test
    assert noisy.val is splits.val
    assert torch.equal(noisy.mean, splits.mean)


def test_noise_is_keyed_by_seed_and_client_and_cut_to_eight_bits():
    splits, parts = grey(4), [torch.arange(2), torch.arange(2, 4)]
    one, two, other = (with_noise(splits, parts, 4.0, seed).train.images for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(one[:2], splits.train.images[:2])
    assert not torch.equal(one[2], one[3])
    three = with_noise(splits, [torch.arange(2), *torch.arange(2, 4).split(1)], 4.0, 0).train.images
    assert not torch.equal(three[3], one[3])
    assert {0, 255} <= set(one.flatten().tolist())


def test_a_run_trains_on_noisy_images_and_is_judged_on_clean_ones(experiment):
    clean, noisy = experiment(), experiment(feature_noise=0.3)
    assert not torch.equal(noisy.splits.train.images, clean.splits.train.images)
    assert torch.equal(noisy.splits.test.images, clean.splits.test.images)
    assert all(torch.equal(*pair) for pair in zip(noisy.clients.parts, clean.clients.parts, strict=True))
    assert "feature_noise=0.3" in noisy.name
