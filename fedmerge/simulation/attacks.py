"""Clients that lie, to try robust merges against: `--attack sign_flip --attackers 0.2`."""

from fedmerge.randomness import generator, round_half_up

ATTACKS = ("sign_flip", "noise", "label_flip")


class Attack:
    """What the attackers among the clients do; the same ones in every round.

    sign_flip: send `-strength` times their update. noise: send normal noise of `strength` times their update's root
    mean square. label_flip: train on class C - 1 - y instead of y, and send what comes of it.
    """

    def __init__(self, kind, n_clients, share, strength, seed):
        """Raises ValueError for a kind that is none of ATTACKS."""
        import torch

        if kind not in ATTACKS:
            raise ValueError(f"there is no attack {kind}")
        order = torch.randperm(n_clients, generator=generator(seed, "attackers")).tolist()
        self.kind, self.strength = kind, strength
        self.numbers = frozenset(order[: round_half_up(share * n_clients)])

    def labels(self, y, n_classes):
        """Return the labels int64 [B] on which an attacker trains."""
        return n_classes - 1 - y if self.kind == "label_flip" else y

    def spoil(self, client, start, vector):
        """Turn `vector [dim]`, which an attacker trained from `start [dim]`, into what it pretends to have trained."""
        n = client.model.layout.n_trainable  # BatchNorm statistics are left as they are: variances stay positive
        update = vector[:n] - start[:n]
        if self.kind == "sign_flip":
            vector[:n] = start[:n] - self.strength * update
        elif self.kind == "noise":
            size = self.strength * update.square().mean().sqrt()
            noise = update.new_empty(n).cpu().normal_(generator=client.rng("attack")).to(update.device)
            vector[:n] = start[:n] + size * noise
