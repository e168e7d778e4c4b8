"""The vector that holds one network's whole state, and what lies where in it."""

import copy
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import nn

from fedmerge.errors import InputError

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Layout:
    """What lies where in a model's vector: trainable tensors in order, then float buffers."""

    names: tuple  # of the trainable tensors
    sizes: tuple  # numbers of weights of the trainable tensors, "layers"; they sum to n_trainable
    n_trainable: int
    dim: int  # with the buffers
    norms: tuple = ()  # (begin, end) of what belongs to normalisation layers, buffers included
    head: tuple = ()  # begin and end of the weights of the last layer, see `head_of`


def head_of(module):
    """Return the name of the layer that makes the logits: the one whose parameters come last in the module."""
    *_, (name, _) = module.named_parameters()
    return name.rpartition(".")[0]


class FlatModel:
    """A module whose parameters, gradients and float buffers are views into two contiguous vectors.

    vector [dim]: all parameters in the module's order, then all float buffers (BatchNorm's running statistics).
    gradient [n_trainable]: backward() accumulates here. Integer buffers (num_batches_tracked) are not state.

    Writing to `vector` changes the module and training the module changes `vector`: nothing is copied either way.
    Raises InputError for a module that uses one parameter in two places.
    """

    def __init__(self, module, device="cpu"):
        self.module = module.to(device)
        parameters = list(module.named_parameters(remove_duplicate=False))
        if len(parameters) != len(list(module.parameters())):
            raise InputError("the network uses a parameter in two places: its vector would hold it twice")
        buffers = [(name, b) for name, b in module.named_buffers() if b.is_floating_point()]
        sizes = tuple(p.numel() for _, p in parameters)
        ends = list(accumulate(t.numel() for _, t in parameters + buffers))
        places = list(zip((name for name, _ in parameters + buffers), [0, *ends], ends, strict=False))
        self.head = self.module.get_submodule(head_of(module))
        head = [place for name, *place in places[: len(parameters)] if self._owner(name) is self.head]
        self.layout = Layout(
            names=tuple(name for name, _ in parameters),
            sizes=sizes,
            n_trainable=sum(sizes),
            dim=ends[-1],
            norms=tuple((a, b) for name, a, b in places if isinstance(self._owner(name), NORMS)),
            head=(head[0][0], head[-1][1]),
        )
        self.vector = torch.cat([t.detach().flatten().float() for _, t in parameters + buffers])
        self.gradient = torch.zeros_like(self.trainable)
        self._bind(parameters, buffers)
        self._views = parameters + buffers  # (name, tensor of its shape) in the vector's order
        self.features = None

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
        """Return a copy of the module on the CPU, in evaluation mode, whose parameters are its own."""
        module = copy.deepcopy(self.module).cpu().eval()
        module.zero_grad(set_to_none=True)
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

        Works within `keeping_features`; leaves the model in training mode.
        """
        self.module.eval()
        torch.func.functional_call(self.module, self.tensors_of(vector), (x,))
        self.module.train()
        return self.features
