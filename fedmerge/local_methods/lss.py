"""Local Superior Soups."""

import torch

from fedmerge.local_methods.base import Pool
from fedmerge.randomness import round_half_up
from fedmerge.registry import local_method


@local_method("lss", averages=True)
class LocalSuperiorSoups(Pool):
    """a pool of models, each trained at random points between itself and those before it (Chen et al. 2024)

    The pool starts with the received model f_p. Each new model starts at the pool's average and joins it, and it alone
    is trained: the gradient is that of the loss at a random convex combination of the pool, chained to the new model,
    plus that of aff_coeff * |f - f_p| - div_coeff * the mean distance of f to the others in the pool (l2 norms). The
    result is the pool's average (Algorithm 1). Momentum, or Adam's moments, start anew with every model.

    Differs from their code, which is `lss_published`.

    All models are held as differences to f_p, which needs no row then: [n_verts, n_trainable]. Distances follow from
    products of these rows; the next point and the distances' gradients are each a row of coefficients times them. What
    cancels there is of the size of the distances, not of the weights.
    """

    options = {
        "aff_coeff": (3.0, "nonnegative", "affinity: strength of the pull to the received model"),
        "div_coeff": (3.0, "nonnegative", "diversity: strength of the push from the other models"),
        "average_received": (True, "flag", "the received model counts in the final average"),
        "interpolate": (True, "flag", "take gradients at random points between the models, not at the new one"),
        "later_share": (1.0, "share", "steps of each model after the first, as a share of those of the first"),
    }

    def __call__(self, client, start, correction):
        model, n = client.model, client.model.layout.n_trainable
        moves = start.new_zeros(self.n_verts, n)
        buffers = torch.cat([start[None, n:]] * (self.n_verts + 1))  # of f_p and the others
        for i in range(self.n_verts):
            moves[i] = moves[:i].sum(0) / (i + 1)
            model.vector[n:] = buffers[: i + 1].mean(0)
            self._train(client, start[:n], moves[: i + 1], correction)
            buffers[i + 1] = model.vector[n:]
        count = self.n_verts + self.average_received
        # Received statistics may be of an earlier round, with --bn_every.
        first = 0 if self.average_received and not client.settings.bn_means else 1
        client.settle(torch.cat([start[:n] + moves.sum(0) / count, buffers[first:].mean(0)]))

    def _train(self, client, anchor, moves, correction):
        """Train the last of `moves [i, n_trainable]`; their models are anchor + moves, the first one the anchor."""
        i, new = len(moves), moves[-1]
        total = self.n_steps(client, self.soup_epochs)
        if i > 1:
            total = max(1, round_half_up(self.later_share * total))
        shares = torch.zeros(total, i + 1)  # of the anchor and the models, in each step
        shares[:, -1] = 1
        if self.interpolate:
            shares = torch.rand(total, i + 1, generator=client.rng("interpolation", i))
            shares /= shares.sum(1, keepdim=True)
        shares = iter(shares[:, 1:].to(moves.device))
        squares = moves[:-1].square().sum(1)  # of the others' distances to the anchor

        def point():
            share = next(shares)
            torch.addmv(anchor, moves.t(), share, out=client.model.trainable)
            return share[-1]

        def add_distances(gradient):
            gradient.addmv_(moves.t(), self._distance_weights(moves, squares))
            if correction is not None:
                gradient += correction(anchor + new)

        more = {"w": new, "point": point, "origin": anchor, "adjust": add_distances}
        for _ in self.run(client, self.soup_epochs, model=i - 1, n_steps=total, **more):
            pass

    def _distance_weights(self, moves, squares):
        """Return c [i] so that c @ moves is the gradient of the distances' part of the loss by the last of `moves`."""
        products = moves @ moves[-1]  # [i]
        own, sums = products[-1], products[-1] + squares
        apart = sums - 2 * products[:-1]
        near = torch.where(apart > 1e-6 * sums, apart.clamp_min(0).rsqrt(), 0)  # 0 where the models are the same
        home = torch.where(own > 0, own.rsqrt(), 0)
        push = self.div_coeff / len(moves)
        return torch.cat([push * near, (self.aff_coeff * home - push * (home + near.sum()))[None]])
