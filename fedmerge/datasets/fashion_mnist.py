"""FashionMNIST as published."""

from fedmerge.datasets import readers
from fedmerge.datasets.cifar import as_images
from fedmerge.registry import dataset


@dataset("FashionMNIST")
def load_fashion_mnist(root, seed):
    """The published IDX files of FashionMNIST, 28x28 in grey (Xiao, Rasul and Vollgraf 2017)."""
    return *as_images(readers.read_idx(root, "FashionMNIST")), 10
