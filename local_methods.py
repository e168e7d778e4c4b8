"""What a client makes of the model that it received: one run of its optimiser, or several and an average.

To add a local method, derive a class from LocalMethod, put `@local_method("name")` over it and say in `__call__` what
a client (local_training.Client) does. Its `options` become flags by themselves, as those of an algorithm do.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F

from options import Stateful
from utils import generator, round_half_up

LOCAL_METHODS = {}


def local_method(name):
    """Class decorator: make the local method known as `--local name`."""

    def add(cls):
        LOCAL_METHODS[name] = cls
        return cls

    return add


@local_method("sgd")
class LocalMethod(Stateful):
    """one run of the optimiser over the client's data"""

    def __call__(self, client, start, pull):
        """Leave in client.model what `client` makes of it; it holds start [dim]. pull(w) -> [n_trainable], or None."""
        for _ in self.run(client, client.settings.epochs, pull):
            pass

    def run(self, client, epochs, pull=None, model=0, indices=None, n_steps=None, **more):
        """Yield after each step of `epochs` passes, at most --local_steps of them, in the order of the `model`-th.

        n_steps: end after so many, which are not more.
        """
        rng = client.rng("batches", model) if model else client.rng("batches")
        n_steps = n_steps or client.settings.max_steps
        if client.can_capture() and pull is None and not any(value is not None for value in more.values()):
            return client.captured_steps(client.choices(epochs, rng, indices, n_steps))
        return client.steps(client.batches(epochs, rng, indices, n_steps), pull=pull, **more)

    def n_steps(self, client, epochs, indices=None):
        """Return how many steps `run` takes."""
        return min(client.n_steps(epochs, indices), client.settings.max_steps or 2**63)


class Pool(LocalMethod):
    """What methods that train several models have in common."""

    options = {
        "n_verts": (4, "count", "models that each client trains and averages"),
        "soup_epochs": (8, "count", "epochs of each of them"),
    }


@local_method("lss")
class LocalSuperiorSoups(Pool):
    """a pool of models, each trained at random points between itself and those before it (Chen et al. 2024)

    The pool starts with the received model f_p. Each new model starts at the pool's average and joins it, and it alone
    is trained: the gradient is that of the loss at a random convex combination of the pool, chained to the new model,
    plus that of aff_coeff * |f - f_p| - div_coeff * the mean distance of f to the others in the pool (l2 norms). The
    result is the pool's average (Algorithm 1; their published code leaves f_p out of it, --no-average_received, and
    trains every model after the first for an eighth of the first one's epochs, --later_share 0.125).

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

    def __call__(self, client, start, pull):
        model, n = client.model, client.model.layout.n_trainable
        moves = start.new_zeros(self.n_verts, n)
        buffers = torch.cat([start[None, n:]] * (self.n_verts + 1))  # of f_p and the others
        for i in range(self.n_verts):
            moves[i] = moves[:i].sum(0) / (i + 1)
            model.vector[n:] = buffers[: i + 1].mean(0)
            self._train(client, start[:n], moves[: i + 1], pull)
            buffers[i + 1] = model.vector[n:]
        count, first = (self.n_verts + 1, 0) if self.average_received else (self.n_verts, 1)
        client.settle(torch.cat([start[:n] + moves.sum(0) / count, buffers[first:].mean(0)]))

    def _train(self, client, anchor, moves, pull):
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
            if pull is not None:
                gradient += pull(anchor + new)

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


@local_method("swa")
class SWA(LocalMethod):
    """the average of the models at the ends of the last epochs (stochastic weight averaging, Izmailov et al. 2018)"""

    options = {"swa_start": (0.75, "decay", "share of the steps after which averaging starts")}

    def __call__(self, client, start, pull):
        epochs = client.settings.epochs
        total = self.n_steps(client, epochs)
        cycle = -(-total // epochs)
        mean, count = torch.zeros_like(start), 0
        for step, _ in enumerate(self.run(client, epochs, pull), 1):
            if (step % cycle == 0 or step == total) and step > self.swa_start * total:
                count += 1
                mean.lerp_(client.model.vector, 1 / count)
        client.settle(mean)


@local_method("swad")
class SWAD(LocalMethod):
    """the average over every step of the stretch in which the loss on held-out samples is low (Cha et al. 2021)

    Algorithm 1 there: the stretch starts at the first evaluation that is the lowest of the swad_wait from it on, and
    ends before the first from which swad_patience on are all above swad_tolerance times the mean of those.
    """

    options = {
        "holdout": (0.1, "share", "share of a client's samples on which it judges its models, and does not train"),
        "swad_evaluations": (20, "count", "evaluations a round"),
        "swad_wait": (3, "count", "N_s: evaluations that show that the loss rises"),
        "swad_patience": (6, "count", "N_e: evaluations that show that it stays high"),
        "swad_tolerance": (1.3, "positive", "r: how high is too high"),
    }

    def __call__(self, client, start, pull):
        train, held = hold_out(client, self.holdout)
        total = self.n_steps(client, client.settings.epochs, train)
        every = -(-total // min(self.swad_evaluations, total))
        means, losses, count = start.new_empty(-(-total // every), client.model.layout.dim), [], 0
        for step, _ in enumerate(self.run(client, client.settings.epochs, pull, indices=train), 1):
            mean, count = means[len(losses)], count + 1
            mean.copy_(client.model.vector) if count == 1 else mean.lerp_(client.model.vector, 1 / count)
            if count == every or step == total:
                losses.append(client.mean_loss(held))
                count = 0
        begin, end = low_stretch(torch.stack(losses).tolist(), self.swad_wait, self.swad_patience, self.swad_tolerance)
        sizes = torch.full([len(losses)], float(every))
        sizes[-1] = total - every * (len(losses) - 1)
        weights = (sizes[begin:end] / sizes[begin:end].sum()).to(means.device)
        client.settle(weights @ means[begin:end])


def low_stretch(losses, wait, patience, tolerance):
    """Return (begin, end) of the low stretch of `losses`, a list of numbers, as SWAD has it; end is exclusive."""
    n = len(losses)
    begin = next((i for i in range(n - wait + 1) if losses[i] == min(losses[i : i + wait])), None)
    if begin is None:
        return n - 1, n
    limit = tolerance * sum(losses[begin : begin + wait]) / wait
    end = next((i for i in range(begin + 1, n - patience + 1) if min(losses[i : i + patience]) > limit), n)
    return begin, end


def hold_out(client, share):
    """Return (indices to train on, indices held out) of the client's samples, int64; the same ones in every round.

    Both have at least one; a client that has only one trains and judges on it.
    """
    n = client.n_samples
    k = min(max(1, round(share * n)), n - 1)
    if k == 0:
        return client.indices, client.indices
    order = torch.randperm(n, generator=generator(client.settings.seed, "holdout", client.number))
    order = client.indices.cpu()[order]
    return order[k:], order[:k]


@local_method("soups")
class Soups(Pool):
    """the average of models trained from the same start with varied settings (model soups, Wortsman et al. 2022)

    Greedy: from the best on, each model stays in the average if that does not raise the loss on held-out samples.
    Their measure is the accuracy; of the few samples that a client can hold out, the loss tells more.
    """

    options = {
        "soup_spread": (3.0, "positive", "learning rate and weight decay are multiplied by up to this, or divided"),
        "soup_selection": ("greedy", ("greedy", "uniform"), "average the models that help, or all"),
        "probe_epochs": (0, "integer", "epochs in which only the last layer is trained, before the models part"),
        "holdout": (0.1, "share", "share of a client's samples on which it judges its models, and does not train"),
    }

    def __call__(self, client, start, pull):
        greedy = self.soup_selection == "greedy"
        train, held = hold_out(client, self.holdout) if greedy else (client.indices, None)
        if self.probe_epochs:
            start = self._probe(client)
        models = start.new_empty(self.n_verts, len(start))
        for i in range(self.n_verts):
            client.model.load(start)
            for _ in self.run(client, self.soup_epochs, pull, i, indices=train, settings=self._vary(client, i)):
                pass
            models[i] = client.model.vector
        client.settle(self._pick(client, models, held) if greedy else models.mean(0))

    def _vary(self, client, i):
        """Return the LocalSettings of the i-th model; the first has the client's own."""
        if i == 0:
            return client.settings
        draws = torch.rand(2, generator=client.rng("soup", i)).tolist()
        lr, decay = (self.soup_spread ** (2 * u - 1) for u in draws)
        return replace(client.settings, lr=lr * client.settings.lr, weight_decay=decay * client.settings.weight_decay)

    def _pick(self, client, models, held):
        """Return the greedy average [dim] of `models [n_verts, dim]`."""

        def loss(vector):
            client.model.load(vector)
            return client.mean_loss(held).item()

        losses = [loss(model) for model in models]
        order = sorted(range(len(models)), key=losses.__getitem__)
        mean, count, best = models[order[0]].clone(), 1, losses[order[0]]
        for i in order[1:]:
            wider = mean + (models[i] - mean) / (count + 1)
            reached = loss(wider)
            if reached <= best:
                mean, count, best = wider, count + 1, reached
        return mean

    def _probe(self, client):
        """Train the last layer alone; return the vector [dim] reached."""
        head = client.model.trainable[-sum(client.model.layout.sizes[-2:]) :]
        rng = client.rng("probe")
        batches = client.batches(self.probe_epochs, rng, n_steps=client.settings.max_steps)
        for _ in client.steps(batches, w=head):
            pass
        return client.model.vector.clone()


@local_method("moon")
class MOON(LocalMethod):
    """features are drawn to those of the received model, from those of the client's last one (Li, He, Song 2021)

    Adds mu * -log softmax of the cosine similarities / temperature (Eq. 3) to the loss; features are what enters the
    last layer, without the projection head that their networks have before it. A client that is new has no last model
    and takes the received one for it, so that the term says nothing.
    """

    options = {
        "moon_mu": (1.0, "nonnegative", "strength of the contrast between models"),
        "moon_temperature": (0.5, "positive", "temperature of the similarities"),
    }

    def __init__(self, **options):
        super().__init__(**options)
        self.last = {}  # client -> [dim]

    def __call__(self, client, start, pull):
        model, last = client.model, self.last.get(client.number, start)

        def loss(logits, x, y):
            own = model.features.float()
            with torch.no_grad():
                received, before = (model.features_of(vector, x).float() for vector in (start, last))
            likeness = torch.stack([F.cosine_similarity(own, other) for other in (received, before)], 1)
            contrast = F.cross_entropy(likeness / self.moon_temperature, torch.zeros_like(y))
            return F.cross_entropy(logits, y) + self.moon_mu * contrast

        with model.keeping_features():
            for _ in self.run(client, client.settings.epochs, pull, loss=loss if self.moon_mu else None):
                pass
        self.last[client.number] = model.vector.clone()

    def held(self):
        return {"last": self.last}

    def kept_length(self, name, layout):
        return layout.dim if name == "last" else None
