"""What a pass through a network hangs on besides its vector: random draws, as dropout has them, and nothing else."""

import threading
from contextlib import contextmanager

import torch

from fedmerge.declared import mistake

CPU = torch.device("cpu")
_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def keyed_draws(seed, device=CPU):
    """While this lasts, torch's global generators draw from `seed`; afterwards those of the CPU and of a CUDA `device`
    go on as if it had not been.

    There is one generator for all threads of a process: one of them draws at a time, where several have runs.
    """
    with _ONE_AT_A_TIME, torch.random.fork_rng(devices=[device] if device.type == "cuda" else [], device_type="cuda"):
        _seed(seed, device)
        yield


def _seed(seed, device):
    """torch.manual_seed for the CPU and a device; torch's own writes the stack down for every kind of device."""
    if device.type not in ("cpu", "cuda"):
        torch.manual_seed(seed)
        return
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@torch.no_grad()
def draws_at_random(model, x):
    """Tell whether the module of a FlatModel draws from torch's global generators as it trains on images x [B, ...].

    Dropout and stochastic depth do, as layers or as functions that a layer calls. The model is left as it was.
    """
    before, device = model.vector.clone(), model.vector.device
    with keyed_draws(0, device):
        states = _generator_states(device)
        model.train()
        model.module(x)
        drawn = any(not torch.equal(*pair) for pair in zip(states, _generator_states(device), strict=True))
    model.load(before)  # BatchNorm has looked at x
    return drawn


@torch.no_grad()
def check_repeats(model, x):
    """Raise InputError if a FlatModel's module makes other logits of images x [B, ...] the second time, from the same
    weights and draws: then it keeps what clients would get from one another, and no checkpoint holds.

    A counter among its attributes does so, an average of its own, or BatchNorm with momentum=None. The model is left as
    it was, what it keeps aside.
    """
    before, found = model.vector.clone(), []
    for _ in range(2):
        model.load(before)
        with keyed_draws(0, before.device):
            model.train()
            trained = model.module(x)
            found.append((trained, model.module.eval()(x)))
    model.load(before)
    model.train()
    for once, again, mode in zip(*found, ("training", "evaluation"), strict=True):
        if not torch.allclose(once, again, rtol=1e-3, atol=1e-4, equal_nan=True):
            raise mistake(
                model.module,
                f"in {mode} mode, it makes other logits of the same images the second time: it keeps something outside "
                "its parameters and float buffers, which one client would get from another",
            )


def _generator_states(device):
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        of = torch.get_device_module(device).get_rng_state
        states.append(of(device) if device.type == "cuda" else of())
    return states
