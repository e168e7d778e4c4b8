"""One client's local work on the flat vector: optimiser steps, mask learning, and what local methods are made of.

Nothing here knows which algorithm it serves. No step waits for the device: losses and hits are summed where they are
made and read once a round.
"""

import contextlib
from functools import partial

import torch
import torch.nn.functional as F

from fedmerge import datasets
from fedmerge.datasets.batches import batch_bounds, client_batches, client_choices
from fedmerge.declared import described, mistake
from fedmerge.local_training.optimizers import OPTIMIZERS
from fedmerge.local_training.settings import gradients_of
from fedmerge.networks.draws import keyed_draws
from fedmerge.randomness import generator, key_seed

GRAM_BATCH = 32  # samples whose patches are in memory at once


class Client:
    """One client in one round. After `train`, `loss` and `hits` are scalar tensors: sums over the `seen` samples, and
    `n_steps` is how many steps its optimiser took.

    `start [dim]` is the model that it trained, `downloaded [dim]` the one that it got, `received` {name: [n_trainable]}
    what the server sent besides.

    `row`, if set, is the vector [upload_dim] in which the server wants what the client sends; fresh memory would cost a
    step.
    `scratch` is another one, to be used until the next client of its Trainer.
    """

    def __init__(self, trainer, client_id, round, settings):
        self.id, self.round, self.settings = client_id, round, settings
        self.trainer = trainer
        self.model, self.splits, self.local = trainer.model, trainer.splits, trainer.local
        self.attack = trainer.attack if trainer.attack and client_id in trainer.attack.numbers else None
        self.indices = trainer.parts[client_id]
        self.n_samples = len(self.indices)
        self.seen, self.loss, self.hits, self.n_steps = 0, 0.0, 0, 0
        self.start, self.received = None, {}
        self.downloaded = None
        self.aside = None  # what an algorithm has its local method train beside
        self.row, self.scratch = None, trainer.lend_scratch()
        self.is_finite = None  # a bool scalar tensor: whether its loss and what it sent are, once it sent

    @property
    def lr(self):
        """The learning rate of this round."""
        return self.settings.lr

    def if_finite(self, vector):
        """Return a vector, zeros instead if the client's loss or what it sent is not finite: it is not merged then."""
        return torch.where(self.is_finite, vector, torch.zeros_like(vector))

    @property
    def gradients(self):
        """How many gradients the steps so far amount to; see settings.gradients_of."""
        return gradients_of(self.n_steps, self.settings.momentum)

    def rng(self, purpose, *more):
        """Return the CPU generator of this client's draws for `purpose` in this round."""
        return generator(self.settings.seed, purpose, self.round, self.id, *more)

    def _own_draws(self, purpose):
        """Return a context in which what the network draws, as dropout does, is this client's own in this round."""
        if not self.trainer.draws:
            return contextlib.nullcontext()
        seed = key_seed(self.settings.seed, "network", purpose, self.round, self.id)
        return keyed_draws(seed, self.model.vector.device)

    def steps_of(self, epochs, indices=None):
        """Return how many steps `epochs` passes over the client's samples, or those at `indices`, take."""
        n = self.n_samples if indices is None else len(indices)
        return epochs * len(batch_bounds(n, self.settings.batch_size))

    def batches(self, epochs, rng, indices=None, n_steps=None):
        """Yield the (x, y) of `epochs` shuffled passes over the client's samples, or those at `indices`.

        n_steps: end after so many, if these are fewer.
        """
        s, indices = self.settings, self.indices if indices is None else indices
        batches = client_batches(self.splits, indices, s.batch_size, epochs, rng, s.augment, n_steps)
        if self.attack is None:
            return batches
        return ((x, self.attack.labels(y, self.splits.n_classes)) for x, y in batches)

    def choices(self, epochs, rng, indices=None, n_steps=None):
        """Yield what is in these batches, as data.client_choices has it."""
        s, indices = self.settings, self.indices if indices is None else indices
        return client_choices(self.splits, indices, s.batch_size, epochs, rng, s.augment, n_steps)

    def forward(self, x):
        """Return the float32 logits of the working model."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.settings.bf16):
            logits = self.model.module(x)
        return logits.float()

    def _backward(self, x, y, carry=0.0, scale=None, loss=None):
        """Make model.gradient `carry` times itself plus the gradient of a batch's mean loss; return the logits.

        scale: a factor on that loss, if given; loss(logits, x, y): another than cross-entropy.
        """
        gradient = self.model.gradient
        gradient.mul_(carry) if carry else gradient.zero_()
        logits = self.forward(x)
        value = F.cross_entropy(logits, y) if loss is None else loss(logits, x, y)
        (value if scale is None else scale * value).backward()
        return logits.detach()

    def train(self, start, correction=None):
        """Train from `start [dim]` on the client's data by the local method; return the trained vector [dim].

        correction(w, start, client) -> [n_trainable], if given, is added to the gradient at the weights w; start is
        that of the weights there. What is returned is the working model's own vector, and changes when the next client
        trains.
        """
        self.start = start
        self.model.load(start)
        self.model.train()
        anchor = start[: self.model.layout.n_trainable]

        def added(w):
            value = correction(w, anchor, self)
            if not torch.is_tensor(value) or value.shape != w.shape:
                raise mistake(correction, f"gives {described(value)}, not a vector [{len(w)}]")
            return value

        with self._own_draws("training"):
            self.local(self, start, None if correction is None else added)
        if self.attack is not None:
            self.attack.spoil(self, start, self.model.vector)
        return self.model.vector

    def told(self):
        """Return {attribute: value} of what is told of its steps so far."""
        return {name: getattr(self, name) for name in ("seen", "loss", "hits", "n_steps")}

    def train_aside(self, start, correction=None):
        """Train a model that is not sent, from `start [dim]`, as `train` does; return it, [dim], as the caller's own.

        It leaves no trace: losses, hits, steps and what a local method keeps for a client are not of it, and no attack
        spoils it. But `loss` is not finite if a number of it is not.
        """
        told = self.told() | {"start": self.start, "attack": self.attack}
        kept = [(of_client, of_client.get(self.id)) for of_client in self.local.of_clients().values()]
        self.attack = None
        trained = self.train(start, correction).clone()
        vars(self).update(told)
        for of_client, value in kept:
            if value is not None:
                of_client[self.id] = value
            else:
                of_client.pop(self.id, None)
        self.loss = self.loss + 0 * trained.sum()
        return trained

    def steps(self, batches, w=None, correction=None, point=None, origin=None, loss=None, settings=None, adjust=None):
        """Take an optimiser step on `w` for each of `batches`, and yield after it.

        w [k]: a part of the working model's weights, all of them if not given; or, if `point` is, a vector
        [n_trainable] of the caller's, the difference of its weights to `origin`. correction(w) -> [k] is added to the
        gradient. point() puts the weights at which the gradient is taken into the working model and returns the
        derivative of these by `w`, a scalar tensor. loss(logits, x, y): instead of the mean cross-entropy. settings:
        other LocalSettings than the client's. adjust(gradient) changes the gradient [k] in place.
        """
        s, w = settings or self.settings, self.model.trainable if w is None else w
        gradient = self.model.gradient_of(w)
        trained = None if self.trainer.trained is None else self._trained(w)
        optimizer = OPTIMIZERS[s.optimizer](w, gradient, s)
        outputs, means = [], RunningMeans(self.model) if s.bn_means else None
        try:
            for x, y in batches:
                scale = None if point is None else point()
                if means:
                    means.count()
                # Where all that enters SGD's velocity is added up, backward() adds to it: two passes less a step.
                outputs.append((self._backward(x, y, optimizer.carry if outputs else 0.0, scale, loss), y))
                with torch.no_grad():
                    if correction is not None:
                        gradient += correction(w)
                    if adjust is not None:
                        adjust(gradient)
                    if trained is not None:
                        gradient *= trained
                    if s.clip_norm is not None:
                        gradient *= (s.clip_norm / (gradient.norm() + 1e-6)).clamp(max=1)
                    if origin is not None and s.weight_decay:
                        gradient.add_(origin, alpha=s.weight_decay)  # the optimiser adds the decay of w itself
                    optimizer.step()
                yield
        finally:
            if means:
                means.end()
            self._count(outputs)

    def _trained(self, w):
        """Return which of the weights w, a part of the model's or a vector [n_trainable], are trained: 1 or 0."""
        inside = w.untyped_storage().data_ptr() == self.model.vector.untyped_storage().data_ptr()
        begin = w.storage_offset() if inside else 0
        return self.trainer.trained[begin : begin + len(w)]

    def saliency(self, vector):
        """Return |w g| [n_trainable] at the model `vector [dim]`, g the gradient of the loss on one batch."""
        self.model.load(vector)
        self.model.train()
        with self._own_draws("saliency"):
            for x, y in self.batches(1, self.rng("saliency"), n_steps=1):
                self._backward(x, y)
        return (self.model.trainable * self.model.gradient).abs()

    def captured_steps(self, choices):
        """Take a plain step of SGD for each of data.client_choices, by a CUDA graph, and yield after it."""
        step, outputs = self.trainer.captured_step(self.settings), []
        step.begin()
        try:
            for chosen, draws in choices:
                outputs.append(step(chosen, draws))
                yield
        finally:
            self._count(outputs)

    def can_capture(self):
        """Tell whether plain steps can be captured."""
        s = self.settings
        drawn = self.trainer.draws  # a graph's recording would draw, too
        plain = s.optimizer == "sgd" and s.clip_norm is None and s.bn != "eval_after_first_epoch"
        return (
            s.capture
            and plain
            and not s.bn_means
            and self.attack is None
            and not drawn
            and self.trainer.trained is None
        )

    def _count(self, outputs):
        """Add up losses and hits of [(logits, y)]."""
        if outputs:
            logits, y = (torch.cat(tensors) for tensors in zip(*outputs, strict=True))
            self.seen += len(y)
            self.n_steps += len(outputs)
            self.loss = self.loss + F.cross_entropy(logits, y, reduction="sum")
            self.hits = self.hits + (logits.argmax(1) == y).sum()

    @torch.no_grad()
    def mean_loss(self, indices):
        """Return the working model's mean loss, a scalar tensor, on the training samples at `indices`."""
        losses, train = [], self.splits.train
        with self.model.evaluating():
            for chosen in indices.to(train.labels.device).split(datasets.batch_size(train, self.splits.image_size)):
                logits, y = self.forward(self.splits.normalise(train.images[chosen])), train.labels[chosen]
                y = y if self.attack is None else self.attack.labels(y, self.splits.n_classes)
                losses.append(F.cross_entropy(logits, y, reduction="sum"))
        return torch.stack(losses).sum() / len(indices)

    def _some(self, n, purpose):
        """Return the places, in the training set, of n of the client's samples, or of all if these are fewer."""
        order = torch.randperm(self.n_samples, generator=self.rng(purpose))
        return self.indices[order[:n]].to(self.splits.train.labels.device)

    def fisher(self, n):
        """Return the diagonal of the Fisher information [n_trainable] at the working model, by n of the samples.

        That is the mean over the samples of the squared gradient of -log p(y | x), with y drawn from p(y | x), the
        network's own prediction as in evaluation. `gradient` of the model is used up.
        """
        total, train, chosen = torch.zeros_like(self.model.gradient), self.splits.train, self._some(n, "fisher")
        draws = torch.rand(len(chosen), generator=self.rng("fisher label")).to(chosen.device)

        def surprise(logits, _, draw):
            shares = logits.detach().softmax(1).cumsum(1)
            return F.cross_entropy(logits, (shares < draw[:, None] * shares[:, -1:]).sum(1))

        with self.model.evaluating():
            for place, draw in zip(chosen.split(1), draws.split(1), strict=True):
                self._backward(self.splits.normalise(train.images[place]), draw, loss=surprise)
                total.addcmul_(self.model.gradient, self.model.gradient)
        return total.div_(len(chosen))

    @torch.no_grad()
    def input_grams(self, names, n):
        """Return G = X X^T / columns [inputs, inputs] of the inputs X of layers, by n of the client's samples.

        names: of the layers' weights. The inputs are those in the working model, as in evaluation; of a convolution,
        each patch that the kernel is laid on is one.
        """
        layers = [self.model.module.get_submodule(name.rpartition(".")[0]) for name in names]
        # One whose weights are used without calling it stays at zeros, and is left to the plain mean.
        grams = [layer.weight.new_zeros(2 * [layer.weight[0].numel()]) for layer in layers]
        counts, train = [0] * len(layers), self.splits.train

        def see(i, layer, given):
            with torch.autocast(self.model.vector.device.type, enabled=False):
                rows = patches(layer, given[0].float())
                gram = rows.t() @ rows
            grams[i] += gram
            counts[i] += len(rows)

        hooks = [layer.register_forward_pre_hook(partial(see, i)) for i, layer in enumerate(layers)]
        try:
            with self.model.evaluating():
                for chosen in self._some(n, "gram").split(GRAM_BATCH):
                    self.forward(self.splits.normalise(train.images[chosen]))
        finally:
            for hook in hooks:
                hook.remove()
        return [gram / max(1, count) for gram, count in zip(grams, counts, strict=True)]

    @torch.no_grad()
    def settle(self, vector):
        """Make `vector [dim]`, an average, the working model's; with bn_recalibrate, measure BatchNorm's statistics.

        These are then the means over one pass of the client's batches, at these weights.
        """
        self.model.load(vector)
        means = RunningMeans(self.model)
        if not means.norms or not self.settings.bn_recalibrate:
            return
        self.model.train()
        for x, _ in self.batches(1, self.rng("recalibrate")):
            means.count()
            self.forward(x)
        means.end()

    def learn_mix(self, own, received, mix, places, batches, rate):
        """Let `mix [k]` descend the loss of a model, a step of size `rate` each batch, and stay in [0, 1]; in place.

        The model is `received [dim]`, but at the `places [k]`: own + (received - own) * mix. Returns the loss of the
        last batch, a scalar tensor.
        """
        model, loss = self.model, None
        model.load(received)
        model.train()
        begin, end = own[places], received[places]
        way = end - begin
        with self._own_draws("mixture"):
            for x, y in batches:
                model.vector[places] = torch.lerp(begin, end, mix)
                logits = self._backward(x, y)
                mix.addcmul_(model.gradient[places], way, value=-rate).clamp_(0, 1)
                loss = F.cross_entropy(logits, y)
        return loss

    def learn_mask(self, start, delta, mask, epochs, lr, bias, l1_strength):
        """Return the bool mask [n_trainable] that learning on the client's data makes of `mask`.

        One logit S a weight starts at +bias where `mask` is set and -bias elsewhere; each step descends the loss at
        start + sigmoid(S) * delta, and an L1 term that pulls every sigmoid(S) towards 0; the end is sigmoid(S) rounded
        (He et al. 2024). The chain rule through the sigmoid is written out on the vector.
        """
        model, n = self.model, self.model.layout.n_trainable
        model.train()
        update, anchor = delta[:n], start[:n]
        logits = torch.where(mask, bias, -bias).to(update.dtype)
        with self._own_draws("mask"):
            for x, y in self.batches(epochs, self.rng("mask")):
                soft = logits.sigmoid()
                with torch.no_grad():
                    torch.addcmul(anchor, soft, update, out=model.trainable)
                self._backward(x, y)
                slope = soft * (1 - soft)
                logits -= slope * (lr * model.gradient * update + l1_strength)
        self.loss = self.loss + 0 * logits.sum()  # not finite if a logit is not, so that it is found with the losses
        return logits > 0


def patches(layer, x):
    """Return what a linear or convolutional layer multiplies its weight with, given its input x: [rows, inputs]."""
    if isinstance(layer, torch.nn.Linear):
        return x.reshape(-1, x.shape[-1])
    columns = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return columns.transpose(1, 2).reshape(-1, columns.shape[1])


class RunningMeans:
    """While it counts, BatchNorm's statistics are the means over the forward passes, wherever they began.

    That is what momentum None does in torch, but without waiting for the device.
    """

    def __init__(self, model):
        """model: a FlatModel."""
        self.norms = [m for m in model.module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
        self.momenta, self.n = [norm.momentum for norm in self.norms], 0

    def count(self):
        """Let the next pass count as much as each of those before."""
        self.n += 1
        for norm in self.norms:
            norm.momentum = 1 / self.n

    def end(self):
        """Let statistics be moving averages again."""
        for norm, momentum in zip(self.norms, self.momenta, strict=True):
            norm.momentum = momentum
