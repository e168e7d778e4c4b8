"""Networks, and the flat vector that holds one network's whole state."""

from fedmerge.networks.building import COPIES, LARGEST, build_model, check_size
from fedmerge.networks.cnn import cnn
from fedmerge.networks.draws import CPU, draws_at_random, keyed_draws
from fedmerge.networks.flat_model import NORMS, FlatModel, Layout
from fedmerge.networks.norms import norm_layer
from fedmerge.networks.resnet import resnet18, resnet50
from fedmerge.networks.weights import load_pretrained, load_weights, save_weights

__all__ = [
    "COPIES",
    "CPU",
    "LARGEST",
    "NORMS",
    "FlatModel",
    "Layout",
    "build_model",
    "check_size",
    "cnn",
    "draws_at_random",
    "keyed_draws",
    "load_pretrained",
    "load_weights",
    "norm_layer",
    "resnet18",
    "resnet50",
    "save_weights",
]
