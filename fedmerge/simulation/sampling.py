"""Which clients take part in a round, and which of them fail."""

import torch

from fedmerge.randomness import generator, round_half_up


def cohort_size(n_clients, participation):
    """Return how many clients take part in a round, at least one."""
    return max(1, round_half_up(participation * n_clients))


def sample_clients(n_clients, participation, seed, round, empty=()):
    """Return the sorted numbers of the clients of `round`: this share of those that are not `empty`, at least one."""
    order = torch.randperm(n_clients, generator=generator(seed, "clients", round))
    if empty:
        order = order[~torch.isin(order, torch.tensor(empty))]
    return sorted(order[: cohort_size(len(order), participation)].tolist())


def dropped(numbers, share, seed, round):
    """Return those of the clients `numbers` whose update never arrives: each with the probability `share`."""
    draws = torch.rand(len(numbers), generator=generator(seed, "dropout", round)).tolist()
    return [number for number, draw in zip(numbers, draws, strict=True) if draw < share]
