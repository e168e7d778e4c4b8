"""CIFAR-10 and CIFAR-100 as published."""

import torch

from fedmerge.datasets import readers
from fedmerge.datasets.images import Images
from fedmerge.randomness import generator
from fedmerge.registry import dataset


@dataset("CIFAR10", augment=True)
def load_cifar10(root, seed):
    """The published python version of CIFAR-10, from its folder or from its tar.gz (Krizhevsky 2009)."""
    return *as_images(readers.read_cifar(root, "CIFAR10")), 10


@dataset("CIFAR100", augment=True)
def load_cifar100(root, seed):
    """The published python version of CIFAR-100, with its 100 fine classes (Krizhevsky 2009)."""
    return *as_images(readers.read_cifar(root, "CIFAR100")), 100


def as_images(parts):
    return (Images(*parts[part]) for part in ("train", "test"))


@dataset("CIFAR10T", augment=True)
def load_cifar10_thousand(root, seed):
    """1,000 training samples of CIFAR-10, by seed, with its whole test set: for trying things out."""
    train, test, n_classes = load_cifar10(root, seed)
    return train[torch.randperm(len(train), generator=generator(seed, "subset"))[:1000]], test, n_classes
