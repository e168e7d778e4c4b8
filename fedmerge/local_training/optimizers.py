"""The clients' optimisers, on the flat vector."""

import torch


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


class Adam:
    """torch.optim.Adam, fused where that exists."""

    carry = 0.0

    def __init__(self, w, gradient, settings):
        fused = w.device.type in ("cpu", "cuda")
        w.grad = gradient
        self.inner = torch.optim.Adam([w], lr=settings.lr, weight_decay=settings.weight_decay, fused=fused)

    def step(self):
        self.inner.step()


OPTIMIZERS = {"sgd": SGD, "adam": Adam}
