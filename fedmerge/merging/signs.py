"""The election of signs, of which several merging rules make use."""

import torch


def agreeing_mean(deltas: torch.Tensor, shares: torch.Tensor, n: int) -> torch.Tensor:
    """Return the mean [dim] of `deltas [clients, dim]`, which are used up, by the clients' `shares`, which sum to 1.

    Of each of the first n numbers, it is over those whose sign is that of the mean of all (Yadav et al. 2023).
    """
    mean = shares @ deltas
    for delta in deltas[:, :n]:  # one at a time: there may be no room for twice all
        delta *= delta.sign() == mean[:n].sign()
    votes = sum(share * (delta != 0) for share, delta in zip(shares, deltas[:, :n], strict=True))
    mean[:n] = shares @ deltas[:, :n] / votes.clamp_min(1e-30)  # less than the share of any client
    return mean
