"""Sparse updates stitched together."""


class Stitcher:
    """Merges sparse updates: `stitcher(update, kept) -> step [dim]`.

    update [dim]: the clients' weighted mean, in which they have 0 where they kept nothing. kept
    [n_trainable]: the share of their weight that kept each weight, not needed with prior 1. Both are used up.

    A weight moves by the mean of those that kept it, where each of the others counts as `prior` of a vote for leaving
    it: with 0 this is the mean of those that kept it (He et al. 2024, with sample weights), with 1 the mean over all. A
    weight that nobody kept stays. Buffers `[dim - n_trainable]` are averaged over all clients.
    """

    def __init__(self, layout, prior=0.0):
        self.n, self.prior = layout.n_trainable, prior

    def __call__(self, update, kept):
        if self.prior != 1:
            # Nobody kept a weight: its update is 0, and stays so whatever it is divided by.
            votes = kept.mul_(1 - self.prior).add_(self.prior).clamp_min_(TINY)
            update[: self.n].div_(votes)
        return update


TINY = 1e-30  # less than the share of any client
