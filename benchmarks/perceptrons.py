"""Networks of one hidden layer, of several sizes, for scaling.py: a plugin."""

from torch import nn

from fedmerge.registry import network


def _perceptron(channels, image_size, n_classes, hidden):
    n = channels * image_size**2
    return nn.Sequential(nn.Flatten(), nn.Linear(n, hidden), nn.ReLU(), nn.Linear(hidden, n_classes))


@network("perceptron64", norms=("none",))
def perceptron64(channels, image_size, n_classes, norm):
    return _perceptron(channels, image_size, n_classes, 64)


@network("perceptron128", norms=("none",))
def perceptron128(channels, image_size, n_classes, norm):
    return _perceptron(channels, image_size, n_classes, 128)


@network("perceptron256", norms=("none",))
def perceptron256(channels, image_size, n_classes, norm):
    return _perceptron(channels, image_size, n_classes, 256)


@network("perceptron512", norms=("none",))
def perceptron512(channels, image_size, n_classes, norm):
    return _perceptron(channels, image_size, n_classes, 512)


@network("perceptron1024", norms=("none",))
def perceptron1024(channels, image_size, n_classes, norm):
    return _perceptron(channels, image_size, n_classes, 1024)
