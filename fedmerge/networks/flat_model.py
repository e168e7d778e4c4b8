"""The vector that holds one network's whole state, and what lies where in it."""

import copy
import functools
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import nn

from fedmerge.errors import InputError
from fedmerge.networks.adapters import LowRank, merge_adapters
from fedmerge.networks.norms import is_norm
from fedmerge.networks.standardised import make_plain


@dataclass(frozen=True)
class Layout:
    """What lies where in a model's vector: trainable tensors in order, then float buffers."""

    names: tuple  # of the trainable tensors
    sizes: tuple  # numbers of weights of the trainable tensors, "layers"; they sum to n_trainable
    n_trainable: int
    dim: int  # with the buffers
    norms: tuple = ()  # (begin, end) of what belongs to normalisation layers, buffers included
    head: tuple = ()  # begin and end of the weights of the last layer, see `head_of`
    adapters: tuple = ()  # (begin of A, begin of B, end of B, rank) of low-rank adapters of which both are trained
    shapes: tuple = ()  # of the trainable tensors
    inputs: tuple = ()  # of each, how many inputs it multiplies, as a matrix of all outputs; 0 where it is no such one
    layers: tuple = ()  # ((begin, end), ...) of each layer with weights, in order, with buffers and the norm behind it

    def rows_of(self, vector):
        """Return a view [rows, columns] of each trainable tensor in `vector [dim]` or `[n_trainable]`.

        A matrix has its own, a kernel one for each output, a vector is a row.
        """
        parts = vector[: self.n_trainable].split(self.sizes)
        return [
            part.view(shape[0] if len(shape) > 1 else 1, -1) for part, shape in zip(parts, self.shapes, strict=True)
        ]

    def matrices(self, vector):
        """Return the views `rows_of` of those tensors that are no vectors."""
        return [view for view, shape in zip(self.rows_of(vector), self.shapes, strict=True) if len(shape) > 1]


def head_of(module):
    """Return the name of the layer that makes the logits: the one whose parameters come last in the module."""
    *_, (name, _) = module.named_parameters()
    return name.rpartition(".")[0]


def _inputs(layer, name, parameter):
    """Return how many inputs a parameter multiplies if it is the matrix of a layer that is linear in it, else 0."""
    plain = type(layer) is nn.Linear or (
        type(layer) is nn.Conv2d
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and isinstance(layer.padding, tuple)
    )
    return parameter[0].numel() if plain and name.rpartition(".")[2] == "weight" else 0


def _layers(places, n_trainable, with_weights):
    """Yield what Layout.layers has, given (name, begin, end) of what is in the vector.

    with_weights: the names of modules that have a matrix or a kernel; others, as norms are, belong to the one before.
    """
    owners, layers = {}, []
    for name, begin, end in places:
        owners.setdefault(name.rpartition(".")[0], []).append((begin, end))
    for owner, parts in owners.items():
        if parts[0][0] < n_trainable:
            if layers and owner not in with_weights:
                layers[-1] += parts
            else:
                layers.append(parts)
    yield from map(tuple, layers)


class FlatModel:
    """A module whose trained parameters, gradients and float buffers are views into two contiguous vectors.

    vector [dim]: all parameters that require a gradient, in the module's order, then all float buffers (BatchNorm's
    running statistics). gradient [n_trainable]: backward() accumulates here. Integer buffers (num_batches_tracked) are
    not state.

    Writing to `vector` changes the module and training the module changes `vector`: nothing is copied either way.
    Raises InputError for a module that uses one parameter in two places, or that trains none.
    """

    def __init__(self, module, device="cpu", statistics=True):
        """statistics: whether training changes BatchNorm's; if not, no buffers are in `vector`."""
        self.module, self.statistics = module.to(device), statistics
        parameters = list(module.named_parameters(remove_duplicate=False))
        if len(parameters) != len(list(module.parameters())):
            raise InputError("the network uses a parameter in two places: its vector would hold it twice")
        parameters = [(name, p) for name, p in parameters if p.requires_grad]
        if not parameters:
            raise InputError("the network has no parameter that requires a gradient: there is nothing to train")
        buffers = [(name, b) for name, b in module.named_buffers() if b.is_floating_point() and statistics]
        sizes = tuple(p.numel() for _, p in parameters)
        ends = list(accumulate(t.numel() for _, t in parameters + buffers))
        places = list(zip((name for name, _ in parameters + buffers), [0, *ends], ends, strict=False))
        self.head = self.module.get_submodule(head_of(module))
        head = [place for name, *place in places[: len(parameters)] if self._owner(name) is self.head]
        self.layout = Layout(
            names=tuple(name for name, _ in parameters),
            sizes=sizes,
            shapes=tuple(tuple(p.shape) for _, p in parameters),
            inputs=tuple(_inputs(self._owner(name), name, p) for name, p in parameters),
            n_trainable=sum(sizes),
            dim=ends[-1],
            norms=tuple((a, b) for name, a, b in places if is_norm(self._owner(name))),
            head=(head[0][0], head[-1][1]) if head else (),
            adapters=tuple(self._adapters({name: (a, b) for name, a, b in places})),
            layers=tuple(_layers(places, sum(sizes), {n.rpartition(".")[0] for n, p in parameters if p.dim() > 1})),
        )
        self.vector = torch.cat([t.detach().flatten().float() for _, t in parameters + buffers])
        self.gradient = torch.zeros_like(self.trainable)
        self._bind(parameters, buffers)
        self._views = parameters + buffers  # (name, tensor of its shape) in the vector's order
        self.features = None

    def _adapters(self, places):
        """Yield what Layout.adapters has, given {name: (begin, end)} of what is in the vector."""
        for name, layer in self.module.named_modules():
            if isinstance(layer, LowRank) and f"{name}.a" in places:
                begin, middle = places[f"{name}.a"]
                yield begin, middle, places[f"{name}.b"][1], len(layer.a)

    @property
    def frozen(self):
        """{name: tensor} of the float parameters and buffers that are not in `vector`."""
        inside = {name for name, _ in self._views}
        there = [*self.module.named_parameters(), *self.module.named_buffers()]
        return {name: t for name, t in there if name not in inside and t.is_floating_point()}

    @functools.cached_property
    def frozen_crc(self):
        """Eight hex digits that tell what is frozen, "" if nothing is. It does not change."""
        crc, tensors = 0, self.frozen
        for tensor in tensors.values():
            crc = zlib.crc32(tensor.detach().cpu().contiguous().numpy(), crc)
        return f"{crc:08x}" if tensors else ""

    def twin(self):
        """Return a FlatModel with a vector and a gradient of its own, and what is frozen in common."""
        module = copy.deepcopy(self.module, {id(tensor): tensor for tensor in self.frozen.values()})
        return FlatModel(module, self.vector.device, self.statistics)

    def train(self):
        """Let the module work as in training; BatchNorm as in evaluation, if its statistics are not trained."""
        self.module.train()
        if not self.statistics:
            for layer in self.module.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()

    @contextmanager
    def evaluating(self):
        """Within this, the module works as in evaluation; then as before, which is not always as in training."""
        was_training = self.module.training
        self.module.eval()
        yield
        if was_training:
            self.train()

    def _bind(self, parameters, buffers):
        offset = 0
        for name, old in parameters + buffers:
            owner, attribute = self._owner(name), name.rpartition(".")[2]
            view = self.vector[offset : offset + old.numel()].view_as(old)
            if isinstance(old, nn.Parameter):
                setattr(owner, attribute, nn.Parameter(view))
                getattr(owner, attribute).grad = self.gradient[offset : offset + old.numel()].view_as(old)
            else:
                setattr(owner, attribute, view)
            offset += old.numel()

    def _owner(self, name):
        return self.module.get_submodule(name.rpartition(".")[0])

    @property
    def trainable(self):
        """View of the trainable part of `vector`, [n_trainable]."""
        return self.vector[: self.layout.n_trainable]

    def gradient_of(self, w):
        """Return the part of `gradient` that is of w: a part of `trainable`, or another vector [n_trainable]."""
        inside = w.untyped_storage().data_ptr() == self.vector.untyped_storage().data_ptr()
        begin = w.storage_offset() if inside else 0
        return self.gradient[begin : begin + len(w)]

    def plain_copy(self):
        """Return a copy of the module on the CPU, in evaluation mode, with parameters of its own.

        Adapters are merged, standardised weights are what they amount to.
        """
        module = copy.deepcopy(self.module).cpu().eval()
        module.zero_grad(set_to_none=True)
        merge_adapters(module)
        make_plain(module)
        return module

    def load(self, vector):
        """Copy `vector [dim]` into the model."""
        self.vector.copy_(vector)

    def tensors_of(self, vector):
        """Return {name: tensor of its shape} of another `vector [dim]`, as torch.func.functional_call takes them."""
        tensors, offset = {}, 0
        for name, view in self._views:
            tensors[name] = vector[offset : offset + view.numel()].view_as(view)
            offset += view.numel()
        return tensors

    @contextmanager
    def keeping_features(self):
        """While this lasts, `features` [B, k] is what entered the head in the latest forward pass."""

        def keep(_, inputs):
            self.features = inputs[0]

        handle = self.head.register_forward_pre_hook(keep)
        try:
            yield
        finally:
            handle.remove()
            self.features = None

    def features_of(self, vector, x):
        """Return the features [B, k] of images x at another `vector [dim]`, with its BatchNorm statistics.

        Works within `keeping_features`.
        """
        self.logits_of(vector, x)
        return self.features

    def logits_of(self, vector, x):
        """Return the logits [B, n_classes] of images x at another `vector [dim]`, with its BatchNorm statistics."""
        with self.evaluating():
            return torch.func.functional_call(self.module, self.tensors_of(vector), (x,))
