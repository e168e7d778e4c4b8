"""Lends a working model to one client after the other."""

import functools
from dataclasses import replace

import torch

from fedmerge.local_methods.base import LocalMethod
from fedmerge.local_training.client import Client
from fedmerge.local_training.cuda_graph import CapturedStep
from fedmerge.networks.draws import check_repeats, draws_at_random


class Trainer:
    """Lends its one working model to one client after the other."""

    def __init__(self, model, splits, parts, settings, local=None, attack=None):
        """model: FlatModel; splits: datasets.Splits on its device; parts: each client's indices into splits.train.

        local: a LocalMethod, how clients train; one plain run of the optimiser if not given. attack: an Attack, if some
        of them lie.
        """
        self.model, self.splits, self.parts, self.settings = model, splits, parts, settings
        self.local, self.attack = local or LocalMethod(), attack
        self.scratch, self.captured = None, None
        self.trained = None  # 1 for each weight that is trained, else 0, [n_trainable]; None: all are

    @functools.cached_property
    def draws(self):
        """Whether the network draws as it trains, as one with dropout does: then there can be no twin beside it.

        Raises InputError for a network that keeps something outside its vector.
        """
        images = self.splits.normalise(self.splits.train.images[:2])
        check_repeats(self.model, images)
        return draws_at_random(self.model, images)

    def twin(self):
        """Return a Trainer with a working model of its own, and all else in common, for other clients meanwhile."""
        twin = Trainer(self.model.twin(), self.splits, self.parts, self.settings, self.local, self.attack)
        twin.trained = self.trained
        twin.draws = self.draws  # found out once, and not by several threads at a time
        return twin

    def lend_scratch(self):
        """Return a vector [dim] for what one client after the other makes of its update; fresh memory takes longer."""
        if self.scratch is None:
            self.scratch = torch.empty_like(self.model.vector)
        return self.scratch

    def captured_step(self, settings):
        """Return the CapturedStep of these LocalSettings; the one before is recorded anew if they changed."""
        if self.captured is None or self.captured.settings != settings:
            self.captured = None  # its memory, before another takes as much
            self.captured = CapturedStep(self, settings)
        return self.captured

    def client(self, client_id, round):
        """Return the Client of this id as it takes part in `round` (from 1)."""
        decayed = self.settings.lr * self.settings.lr_decay ** (round - 1)
        return Client(self, client_id, round, replace(self.settings, lr=decayed))
