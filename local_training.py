"""One client's local work on the flat vector: SGD steps, and learning which weights to send.

Nothing here knows which algorithm it serves. No step waits for the device: losses and hits are summed where they are
made and read once a round.
"""

from dataclasses import dataclass, replace
from itertools import islice

import torch
import torch.nn.functional as F

from data import client_batches
from utils import generator


@dataclass(frozen=True)
class LocalSettings:
    """How clients train. lr is that of the first round; in round t it is lr * lr_decay ** (t - 1)."""

    seed: int
    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    lr_decay: float = 1.0
    clip_norm: float | None = None
    augment: bool = False
    bf16: bool = False
    max_steps: int | None = None  # of training in one round


class Trainer:
    """Lends its one working model to one client after the other."""

    def __init__(self, model, splits, parts, settings):
        """model: FlatModel; splits: data.Splits on its device; parts: each client's indices into splits.train."""
        self.model, self.splits, self.parts, self.settings = model, splits, parts, settings

    def client(self, number, round):
        """Return the Client `number` as it takes part in `round` (from 1)."""
        decayed = self.settings.lr * self.settings.lr_decay ** (round - 1)
        return Client(self, number, round, replace(self.settings, lr=decayed))


class Client:
    """One client in one round. After `train`, `loss` and `hits` are scalar tensors: sums over the `seen` samples.

    `row`, if set, is the vector [dim] in which the server wants the client's update; fresh memory would cost a step.
    """

    def __init__(self, trainer, number, round, settings):
        self.number, self.round, self.settings = number, round, settings
        self.model, self.splits = trainer.model, trainer.splits
        self.indices = trainer.parts[number]
        self.n_samples = len(self.indices)
        self.seen, self.loss, self.hits = 0, 0.0, 0
        self.row = None

    def _batches(self, epochs, purpose):
        s = self.settings
        rng = generator(s.seed, purpose, self.round, self.number)
        return client_batches(self.splits, self.indices, s.batch_size, epochs, rng, s.augment)

    def _backward(self, x, y, carry=0.0):
        """Make model.gradient `carry` times itself plus the gradient of a batch's mean loss; return the logits."""
        gradient = self.model.gradient
        gradient.mul_(carry) if carry else gradient.zero_()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.settings.bf16):
            logits = self.model.module(x)
        logits = logits.float()
        F.cross_entropy(logits, y).backward()
        return logits.detach()

    def train(self, start, pull=None):
        """Train from `start [dim]` on the client's data by SGD; return the trained vector [dim].

        Each step is that of torch.optim.SGD: v = momentum * v + g, w -= lr * v, where g is the gradient of the loss,
        plus pull(w, start) -> [n_trainable] if given, clipped if asked for, plus weight_decay * w. What is returned is
        the working model's own vector, and changes when the next client trains.
        """
        s, model = self.settings, self.model
        model.load(start)
        model.module.train()
        w, g, anchor = model.trainable, model.gradient, start[: model.layout.n_trainable]
        velocity = g if s.clip_norm is None else torch.zeros_like(g)
        outputs, targets = [], []
        for x, y in islice(self._batches(s.epochs, "batches"), s.max_steps):
            # Without clipping all that enters v is added up, so backward() adds to v itself: two passes less a step.
            carry = s.momentum if velocity is g and outputs else 0.0
            outputs.append(self._backward(x, y, carry))
            targets.append(y)
            with torch.no_grad():
                if pull is not None:
                    g += pull(w, anchor)
                if velocity is not g:
                    g *= (s.clip_norm / (g.norm() + 1e-6)).clamp(max=1)
                    velocity.mul_(s.momentum).add_(g)
                if s.weight_decay:
                    velocity.add_(w, alpha=s.weight_decay)
                w.add_(velocity, alpha=-s.lr)
        logits, y = torch.cat(outputs), torch.cat(targets)
        self.seen = len(y)
        self.loss = F.cross_entropy(logits, y, reduction="sum")
        self.hits = (logits.argmax(1) == y).sum()
        return model.vector

    def learn_mask(self, start, delta, mask, epochs, lr, bias, l1_strength):
        """Return the bool mask [n_trainable] that learning on the client's data makes of `mask`.

        One logit S a weight starts at +bias where `mask` is set and -bias elsewhere; each step descends the loss at
        start + sigmoid(S) * delta, and an L1 term that pulls every sigmoid(S) towards 0; the end is sigmoid(S) rounded
        (He et al. 2024). The chain rule through the sigmoid is written out on the vector.
        """
        model, n = self.model, self.model.layout.n_trainable
        model.module.train()
        update, anchor = delta[:n], start[:n]
        logits = torch.where(mask, bias, -bias).to(update.dtype)
        for x, y in self._batches(epochs, "mask"):
            soft = logits.sigmoid()
            with torch.no_grad():
                torch.addcmul(anchor, soft, update, out=model.trainable)
            self._backward(x, y)
            slope = soft * (1 - soft)
            logits -= slope * (lr * model.gradient * update + l1_strength)
        self.loss = self.loss + 0 * logits.sum()  # not finite if a logit is not, so that it is found with the losses
        return logits > 0
