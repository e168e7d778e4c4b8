"""The digits: three disjoint sets, and their domains by hand."""

import torch
from conftest import keys

from fedmerge import datasets


def test_digits_are_split_into_three_disjoint_sets():
    splits = datasets.load_dataset("DIGITS", ".", seed=0)
    sets = [splits.train, splits.val, splits.test]
    assert [len(s) for s in sets] == [1294, 143, 360]
    assert len(set.union(*map(keys, sets))) == sum(len(keys(s)) for s in sets)
    share = torch.bincount(splits.test.labels) / 360
    assert share.max() - share.min() < 0.01  # stratified


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
