"""The clients' optimisers, on the flat vector."""

import torch
from torch.optim.adam import adam


class SGD:
    """torch.optim.SGD on the vector: v = momentum * v + g + weight_decay * w, w -= lr * v."""

    def __init__(self, w, gradient, settings):
        self.w, self.gradient, self.settings = w, gradient, settings
        self.carry = settings.momentum if settings.clip_norm is None else 0.0  # with clipping, v is apart from g
        self.velocity = gradient if settings.clip_norm is None else torch.zeros_like(gradient)

    def step(self):
        s, v = self.settings, self.velocity
        if v is not self.gradient:
            v.mul_(s.momentum).add_(self.gradient)
        if s.weight_decay:
            v.add_(self.w, alpha=s.weight_decay)
        self.w.add_(v, alpha=-s.lr)


FUSED = ("cpu", "cuda")  # devices that torch has a fused Adam for; its roundings are others


class Adam:
    """torch.optim.Adam by its function, fused where that exists: the class imports torch's compiler, for a second."""

    carry = 0.0

    def __init__(self, w, gradient, settings):
        fused = w.device.type in FUSED
        n_steps = torch.zeros((), device=w.device if fused else "cpu")
        self.tensors = [[w], [gradient], [torch.zeros_like(w)], [torch.zeros_like(w)], [], [n_steps]]
        self.options = {
            "lr": settings.lr,
            "weight_decay": settings.weight_decay,
            "beta1": 0.9,
            "beta2": 0.999,
            "eps": 1e-8,
            "amsgrad": False,
            "maximize": False,
            "fused": fused,
        }

    @torch.no_grad()
    def step(self):
        adam(*self.tensors, **self.options)


OPTIMIZERS = {"sgd": SGD, "adam": Adam}
