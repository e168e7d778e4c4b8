"""A network by its name, with its starting weights."""

import torch

from fedmerge import memory
from fedmerge.declared import described, mistake
from fedmerge.errors import InputError, reason
from fedmerge.networks.draws import keyed_draws
from fedmerge.networks.flat_model import head_of
from fedmerge.registry import NETWORKS, find

LARGEST = 2**31  # weights: positions are int32, and so are counts of a message
COPIES = 5  # of the vector that a run has at least: a client's, its gradient, the server's, an update, their sum


def check_name(name):
    """Raise InputError if a family of networks has none of this name, as far as it can tell without building it."""
    check = NETWORKS[name].registered.get("check")
    if check:
        check(name)


def build_model(name, channels, image_size, n_classes, norm, seed, device="cpu", **options):
    """Return the freshly initialised module; the same `seed` gives the same weights whatever was drawn before.

    options: those that the network has of its own, as far as they are not at their defaults.

    Raises InputError, before anything is allocated, for one that the memory of the torch.device does not hold.
    """
    own = NETWORKS[name].registered.get("options", {})
    options = {option: default for option, (default, *_) in own.items()} | options
    with torch.device("meta"):
        shapes = NETWORKS[name](channels, image_size, n_classes, norm, **options)
    _check_parameters(shapes, NETWORKS[name])
    check_size(name, sum(p.numel() for p in shapes.parameters()), device)
    with keyed_draws(seed):
        module = NETWORKS[name](channels, image_size, n_classes, norm, **options)
        check_logits(module, name, channels, image_size, n_classes)
    return module


def _check_parameters(module, network):
    """Raise InputError unless a `network` made a module whose parameters can lie one after the other in a vector."""
    if not isinstance(module, torch.nn.Module) or not list(module.parameters()):
        said = f"the class {module.__name__}" if isinstance(module, type) else described(module)
        raise mistake(network, f"returns {said}, not a torch.nn.Module with parameters")
    places = {}
    for name, p in module.named_parameters(remove_duplicate=False):
        if isinstance(p, torch.nn.parameter.UninitializedParameter):
            raise mistake(network, f"{name} is of a lazy layer, without a shape before the first image: say its inputs")
        if places.setdefault(p, name) != name:
            raise mistake(network, f"{name} is {places[p]} once more: its vector would hold a weight twice")


@torch.no_grad()
def check_logits(module, name, channels, image_size, n_classes):
    """Raise InputError unless a module makes float32 logits [B, n_classes] of images; it is left in training mode."""
    images = torch.zeros(1, channels, image_size, image_size)
    module.eval()
    called, hooks = [], []  # names of the layers with parameters, as they are used; none that holds others with some
    for layer_name, layer in module.named_modules():
        if layer._parameters and not any(True for child in layer.children() for _ in child.parameters()):
            hooks.append(layer.register_forward_hook(lambda *_, used=layer_name: called.append(used)))
    try:
        logits = module(images)
    except Exception as error:  # it is its author's code
        said = f"fails on float32 {list(images.shape)}: {reason(error)}"
        if find("model_name", name).is_family:  # a library's, which may need larger images
            raise InputError(f"--model_name {name} {said}; another --image_size?") from error
        raise mistake(NETWORKS[name], said) from error
    for hook in hooks:
        hook.remove()
    if called and called[-1] != head_of(module):
        raise mistake(
            NETWORKS[name],
            f"its last layer, {called[-1]}, must be the last that is set in __init__, not {head_of(module)}",
        )
    if not torch.is_tensor(logits) or logits.dtype != torch.float32 or logits.shape != (1, n_classes):
        raise mistake(NETWORKS[name], f"makes {described(logits)} of one image, not float32 [1, {n_classes}]")
    module.train()


def check_size(name, n_weights, device):
    """Raise InputError if a run with so many weights cannot be."""
    there = memory.free(torch.device(device))
    said = f"--model_name {name} has {n_weights:,} weights for images of this size"
    advice = "a smaller --image_size, or another network"
    if n_weights >= LARGEST:
        raise InputError(f"{said}, more than 2^31: {advice}")
    if COPIES * 4 * n_weights > there:
        raise InputError(
            f"{said}, of which a run holds {COPIES} copies, {memory.in_words(COPIES * 4 * n_weights)}, and "
            f"{memory.in_words(there)} are free: {advice}"
        )
