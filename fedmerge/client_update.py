"""What one client sends, and what the server knows of it."""

from dataclasses import dataclass

import torch


class ClientUpdate:
    """delta [dim]: trained minus received, 0 where the mask is unset; mask, bool [n_trainable]: the weights that are
    sent, None for all. Vectors that an algorithm sends besides are attributes, as in
    `ClientUpdate(delta, control=c).control`.
    """

    __slots__ = ("delta", "mask", "more")

    def __init__(self, delta, mask=None, **more):
        self.delta, self.mask, self.more = delta, mask, more

    def __getattr__(self, name):
        if name != "more" and name in self.more:
            return self.more[name]
        raise AttributeError(f"the update holds no {name}")


@dataclass(frozen=True)
class ClientResult:
    """What is to be known of a client that trained and sent `bytes` of an update.

    loss, hits: sums over the `seen` samples; total: the sum of the update, which is not finite if an entry is not;
    kept: how many weights it sent. These are scalar tensors, so that no GPU is waited for.
    """

    client_id: int
    n_samples: int
    n_steps: int  # of its optimiser
    bytes: int
    seen: int
    loss: torch.Tensor
    hits: torch.Tensor
    total: torch.Tensor
    kept: object  # or a number
    masked: bool = False  # whether it chose what to send

    def plain(self):
        """Return {name: number}, to be sent; `ClientResult.of` undoes it."""
        return {name: value.item() if torch.is_tensor(value) else value for name, value in vars(self).items()}

    @classmethod
    def of(cls, plain, device):
        """Return the ClientResult that became `plain`."""
        tensors = {name: torch.tensor(plain[name], device=device) for name in ("loss", "hits", "total")}
        return cls(**plain | tensors)

    def finite(self):
        """Return whether its loss and its update are finite, a bool scalar tensor."""
        return self.total.isfinite() & self.loss.isfinite()
