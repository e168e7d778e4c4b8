"""Which of a network's parameters are trained: all, or a few of them, or low-rank adapters beside them.

What is not trained is no part of the model's vector: it is held once, and never sent.
"""

import re

from torch.nn.utils import parametrize

from fedmerge.errors import InputError
from fedmerge.networks.adapters import LowRank
from fedmerge.networks.flat_model import head_of
from fedmerge.networks.norms import WEIGHTED, is_norm


def choose_trained(module, what, rank=8, alpha=16.0, layers=None, freeze_a=False):
    """Freeze all parameters of a module but those that are trained, and add adapters to it if these are.

    what: "all"; or what makes the logits, since it is new, and besides it nothing ("head"), the parameters of
    normalisation layers ("norms"), what is called bias ("bias"; BitFit, Ben Zaken et al. 2022), or adapters ("lora"; Hu
    et al. 2021). rank, alpha: see adapters.LowRank. layers: a regular expression that is looked for in names of linear
    and convolutional layers; all but the head if not given. freeze_a: train factors B only (FFA-LoRA, Sun et al. 2024).

    Raises InputError if nothing but the head would be trained.
    """
    if what == "all":
        return
    heads = _heads_of(module)
    of_head = {id(p) for head in heads for p in head.parameters()}
    if what == "lora":
        trained = _add_adapters(module, heads, rank, alpha, layers, freeze_a)
    else:
        trained = {id(p) for p in CHOOSE[what](module)} - of_head
    if not trained and what != "head":
        raise InputError(f"--trainable {what}: the network has none besides its head: --trainable head")
    for parameter in module.parameters():
        parameter.requires_grad_(id(parameter) in trained | of_head)


def _heads_of(module):
    """Return the layers that make logits: one, or those whose mean a distilled network of timm takes."""
    last = module.get_submodule(head_of(module))
    of_timm = module.get_classifier() if hasattr(module, "get_classifier") else last
    heads = of_timm if isinstance(of_timm, tuple) else (of_timm,)
    return heads if any(last in head.modules() for head in heads) else (last,)


def _of_norms(module):
    return [p for layer in module.modules() if is_norm(layer) for p in layer.parameters(recurse=False)]


def _biases(module):
    return [p for name, p in module.named_parameters() if name.rpartition(".")[2] == "bias"]


CHOOSE = {"head": lambda _: [], "norms": _of_norms, "bias": _biases}


def _add_adapters(module, heads, rank, alpha, layers, freeze_a):
    """Return the ids of what is trained of the adapters that are added."""
    layers_of_heads = {layer for head in heads for layer in head.modules()}
    weighted = {name: layer for name, layer in module.named_modules() if isinstance(layer, WEIGHTED)}
    able = {name: layer for name, layer in weighted.items() if layer not in layers_of_heads}
    found = [layer for name, layer in able.items() if layers is None or re.search(layers, name)]
    if layers is not None and not found:
        some = ", ".join(list(able)[:4])
        raise InputError(f"--lora_layers {layers}: is in the name of no linear or convolutional layer, such as {some}")
    trained = set()
    for layer in found:
        adapter = LowRank(layer.weight, rank, alpha)
        parametrize.register_parametrization(layer, "weight", adapter)
        trained |= {id(adapter.b)} if freeze_a else {id(adapter.a), id(adapter.b)}
    return trained
