"""Datasets as tensors, and the batches clients train on."""

from fedmerge.datasets.batches import (
    CPU_PIXELS,
    CROP_PADDING,
    PIXELS,
    augment,
    batch,
    batch_bounds,
    batch_size,
    client_batches,
    client_choices,
)
from fedmerge.datasets.cifar import as_images, load_cifar10, load_cifar10_thousand, load_cifar100
from fedmerge.datasets.digits import DIGIT_DOMAINS, WRITERS, in_all_domains, load_digits, load_digits_a, load_digits_b
from fedmerge.datasets.fashion_mnist import load_fashion_mnist
from fedmerge.datasets.folder import FOLDER_SIZE, FOLDER_TEST, load_folder
from fedmerge.datasets.images import Images, Splits, join
from fedmerge.datasets.loading import fingerprint, label_set, load_dataset, resize
from fedmerge.datasets.tiny_imagenet import load_tiny_imagenet

__all__ = [
    "CPU_PIXELS",
    "CROP_PADDING",
    "DIGIT_DOMAINS",
    "FOLDER_SIZE",
    "FOLDER_TEST",
    "PIXELS",
    "WRITERS",
    "Images",
    "Splits",
    "as_images",
    "augment",
    "batch",
    "batch_bounds",
    "batch_size",
    "client_batches",
    "client_choices",
    "fingerprint",
    "in_all_domains",
    "join",
    "label_set",
    "load_cifar10",
    "load_cifar10_thousand",
    "load_cifar100",
    "load_dataset",
    "load_digits",
    "load_digits_a",
    "load_digits_b",
    "load_fashion_mnist",
    "load_folder",
    "load_tiny_imagenet",
    "resize",
]
