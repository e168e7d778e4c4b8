"""Batches and augmentation, by slow twins."""

from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from cifar_files import write_cifar
from hypothesis import given
from hypothesis import strategies as st

from fedmerge import datasets
from fedmerge.randomness import generator


@given(n=st.integers(1, 300), size=st.integers(1, 70))
def test_batches_cover_everything_once_and_leave_no_single_sample(n, size):
    bounds = datasets.batch_bounds(n, size)
    assert [begin for begin, _ in bounds] == [0, *(end for _, end in bounds)][:-1]
    assert bounds[-1][1] == n
    sizes = [end - begin for begin, end in bounds]
    assert all(s <= size + 1 for s in sizes)
    assert 1 not in sizes or n == 1 or set(sizes) == {size}


def test_every_epoch_is_another_order_of_the_same_samples(experiment):
    run = experiment()
    epochs = 3
    seen = list(datasets.client_batches(run.splits, run.clients.parts[0], 16, epochs, generator(0, "x")))
    images = torch.cat([x for x, _ in seen]).chunk(epochs)
    labels = torch.cat([y for _, y in seen]).chunk(epochs)
    own = run.splits.train.labels[run.clients.parts[0]]
    assert all(torch.equal(y.sort().values, own.sort().values) for y in labels)
    assert not torch.equal(images[0], images[1])
    assert torch.allclose(images[0].sum(0), images[1].sum(0), atol=1e-3)
    assert not torch.equal(labels[0], own)


@pytest.mark.parametrize("reflect", [False, True])
def test_augmentation_equals_padding_cropping_and_flipping_one_by_one(reflect):
    g = torch.Generator().manual_seed(0)
    images = torch.randint(256, (50, 3, 12, 10), dtype=torch.uint8, generator=g)
    draws = torch.stack([torch.randint(n, (50,), generator=g) for n in (9, 9, 2)], dim=1)
    expected = []
    for image, (down, right, flip) in zip(images, draws.tolist(), strict=True):
        padded = F.pad(image.float(), [4] * 4, mode="reflect" if reflect else "constant").to(torch.uint8)
        crop = padded[:, down : down + 12, right : right + 10]
        expected.append(crop.flip(-1) if flip else crop)
    assert torch.equal(datasets.augment(images, draws, reflect), torch.stack(expected))


def test_a_run_pads_and_scales_as_it_is_told(experiment, tmp_path):
    of_cifar = {"dataset": "CIFAR10", "data_root": str(write_cifar(tmp_path)), "model_name": "lenet"}
    run = experiment(**of_cifar, augment="reflect", normalise=False)
    images = run.splits.train.images[:4]
    assert run.clients.trainer.settings.augment
    draws = torch.tensor([[0, 0, 0], [8, 8, 1], [1, 5, 0], [4, 4, 0]])
    x, _ = datasets.batch(run.splits, torch.arange(4), draws)
    torch.testing.assert_close(x, datasets.augment(images, draws, reflect=True) / 255)
    usual = experiment(**of_cifar)
    x, _ = datasets.batch(usual.splits, torch.arange(4), draws)
    moved = datasets.augment(images, draws)
    torch.testing.assert_close(x, usual.splits.normalise(moved))
    assert usual.splits.mean.max() > 0


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
