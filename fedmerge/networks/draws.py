"""Networks that draw at random as they train, as those with dropout do."""

import threading
from contextlib import contextmanager

import torch

CPU = torch.device("cpu")
_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def keyed_draws(seed, device=CPU):
    """While this lasts, torch's global generators draw from `seed`; afterwards those of the CPU and of a CUDA `device`
    go on as if it had not been.

    There is one generator for all threads of a process: one of them draws at a time, where several have runs.
    """
    with _ONE_AT_A_TIME, torch.random.fork_rng(devices=[device] if device.type == "cuda" else [], device_type="cuda"):
        torch.manual_seed(seed)  # of every device
        yield


@torch.no_grad()
def draws_at_random(model, x):
    """Tell whether the module of a FlatModel draws from torch's global generators as it trains on images x [B, ...].

    Dropout and stochastic depth do, as layers or as functions that a layer calls. The model is left as it was.
    """
    before, device = model.vector.clone(), model.vector.device
    with keyed_draws(0, device):
        states = _generator_states(device)
        model.module.train()
        model.module(x)
        drawn = any(not torch.equal(*pair) for pair in zip(states, _generator_states(device), strict=True))
    model.load(before)  # BatchNorm has looked at x
    return drawn


def _generator_states(device):
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        of = torch.get_device_module(device).get_rng_state
        states.append(of(device) if device.type == "cuda" else of())
    return states
