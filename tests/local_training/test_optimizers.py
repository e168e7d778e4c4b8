"""The clients' optimisers against torch's, to the last bit."""

import sys

import pytest
import torch

from fedmerge.local_training.optimizers import OPTIMIZERS
from fedmerge.local_training.settings import LocalSettings

TORCHS = {"sgd": (torch.optim.SGD, {"momentum": 0.9}), "adam": (torch.optim.Adam, {"fused": True})}
SETTINGS = LocalSettings(seed=0, epochs=1, batch_size=1, lr=0.01, momentum=0.9, weight_decay=5e-4)


def steps(name, n=20):
    """Take n steps of our optimiser and of torch's with the same gradients; return both weights."""
    g = torch.Generator().manual_seed(0)
    ours = torch.randn(1000, generator=g)
    theirs, gradient = ours.clone(), torch.zeros_like(ours)
    optimizer = OPTIMIZERS[name](ours, gradient, SETTINGS)
    kind, more = TORCHS[name]
    twin = kind([theirs], lr=SETTINGS.lr, weight_decay=SETTINGS.weight_decay, **more)
    for _ in range(n):
        new = torch.randn(1000, generator=g)
        gradient.mul_(optimizer.carry).add_(new)
        theirs.grad = new
        optimizer.step()
        twin.step()
    return ours, theirs


def test_adam_is_torchs_to_the_last_bit():
    assert torch.equal(*steps("adam"))


def test_sgd_is_torchs_but_for_rounding():
    """Weight decay is added to velocity and gradient, which are one, instead of to the gradient before."""
    assert torch.allclose(*steps("sgd"), rtol=1e-4, atol=1e-5)


def adam_and_what_it_imports():
    OPTIMIZERS["adam"](torch.ones(3), torch.ones(3), SETTINGS).step()
    sys.exit(int("torch._dynamo" in sys.modules))


@pytest.mark.slow
def test_adam_does_not_import_torchs_compiler(spawn):
    process = spawn(function=adam_and_what_it_imports)
    process.join()
    assert process.exitcode == 0
