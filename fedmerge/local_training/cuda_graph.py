"""A training step as a CUDA graph: recorded once, replayed for every batch of the same size.

A step on a small batch is some dozens of kernels of a few microseconds each, and asking for them one by one takes
longer than running them. Of plain SGD nothing in a step changes but which samples it is about.
"""

import threading

import torch
import torch.nn.functional as F

from fedmerge import datasets

LOCK = threading.Lock()  # one recording at a time
WARM_UP = 3  # steps before recording, in which libraries choose their kernels


class CapturedStep:
    """A step of SGD with momentum on a local_training.Trainer's model, for batches of one size.

    Where there is no CUDA device, the same is done without a graph, from the same fixed tensors: for the tests.
    """

    def __init__(self, trainer, settings):
        """settings: a LocalSettings, all of whose numbers are recorded."""
        self.model, self.splits, self.settings = trainer.model, trainer.splits, settings
        device = self.model.vector.device
        self.chosen = torch.zeros(settings.batch_size, dtype=torch.int64, device=device)
        self.draws = torch.zeros(settings.batch_size, 3, dtype=torch.int64, device=device) if settings.augment else None
        self.result, self.graph = None, None
        if device.type == "cuda":
            with LOCK:
                self._record()

    def _record(self):
        vector = self.model.vector.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.plain(self.chosen, self.draws)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.result = self.plain(self.chosen, self.draws)
        self.model.load(vector)

    def begin(self):
        """Forget the momentum of earlier steps."""
        self.model.gradient.zero_()

    def plain(self, chosen, draws):
        """Take the step on the samples `chosen`, int64 [B], moved by `draws` [B, 3]; return their logits and labels."""
        s, model = self.settings, self.model
        x, y = datasets.batch(self.splits, chosen, draws)
        model.gradient.mul_(s.momentum)  # backward() adds to the velocity
        with torch.autocast(x.device.type, torch.bfloat16, enabled=s.bf16, cache_enabled=False):
            logits = model.module(x)
        logits = logits.float()
        F.cross_entropy(logits, y).backward()
        with torch.no_grad():
            if s.weight_decay:
                model.gradient.add_(model.trainable, alpha=s.weight_decay)
            model.trainable.add_(model.gradient, alpha=-s.lr)
        return logits.detach(), y

    def __call__(self, chosen, draws):
        """Take the step by the graph if the batch is of its size."""
        if len(chosen) != len(self.chosen):
            return self.plain(chosen, draws)
        self.chosen.copy_(chosen)
        if draws is not None:
            self.draws.copy_(draws)
        if self.graph is None:
            self.result = self.plain(self.chosen, self.draws)
        else:
            self.graph.replay()
        return tuple(tensor.clone() for tensor in self.result)
