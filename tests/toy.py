"""A server on a model of a few weights, and clients whose training adds what a test says."""

from types import SimpleNamespace

import torch

from fedmerge.client_update import ClientResult
from fedmerge.config.resolve import resolve
from fedmerge.networks.flat_model import Layout
from fedmerge.randomness import generator
from fedmerge.simulation.server import Server

SIZES, N_BUFFERS = (4, 3, 2), 3
LAYOUT = Layout(
    names=("a", "b", "c"),
    sizes=SIZES,
    n_trainable=9,
    dim=12,
    shapes=((2, 2), (3,), (1, 2)),
    inputs=(2, 0, 2),
    layers=(((0, 4),), ((4, 7),), ((7, 9),)),
)
CLIENTS = 20  # of a run, whether or not a test lets them take part


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def cohort(seed, clients=4, layout=LAYOUT):
    """Random (theta [dim], deltas [clients, dim], p [clients]) in float64."""
    g = torch.Generator().manual_seed(seed)
    theta = torch.randn(layout.dim, generator=g, dtype=torch.float64)
    deltas = torch.randn(clients, layout.dim, generator=g, dtype=torch.float64)
    p = torch.rand(clients, generator=g, dtype=torch.float64) + 0.1
    return theta, deltas, p / p.sum()


def build(layout=LAYOUT, **settings):
    """Return the Server that the command line makes of these settings; its `theta` is that of no round."""
    if settings.get("algorithm") == "centralised":
        settings = {"n_clients": 1, **settings}
    args = resolve({"n_clients": CLIENTS, **settings})
    return Server(args, layout, torch.zeros(layout.dim, dtype=torch.float64), [1] * args.n_clients)


class FakeClient:
    """A client whose training adds a fixed `delta`, and records what it was given."""

    scratch = attack = None

    def __init__(self, delta, client_id=0, round=1, n_steps=1, lr=0.1):
        self.delta, self.id, self.round, self.lr = delta, client_id, round, lr
        self.n_steps = self.gradients = n_steps  # it has no momentum
        self.row, self.received, self.n_samples = torch.empty_like(delta), {}, 1
        self.model = SimpleNamespace(vector=delta, layout=LAYOUT)
        self.indices = torch.arange(1)

    def train(self, start, correction):
        self.start, self.correction = start.clone(), correction
        self.model.vector = start + self.delta
        return self.model.vector

    def train_aside(self, start, correction):
        return start + self.delta

    def rng(self, purpose, *more):
        return generator(0, purpose, self.round, self.id, *more)

    def if_finite(self, vector):
        return vector

    def batches(self, epochs, rng, indices=None):
        return []

    def learn_mix(self, own, received, mix, places, batches, rate):
        mix *= 0.9
        return mix.sum()

    def fisher(self, n):
        return torch.rand(9, generator=self.rng("fisher"), dtype=self.delta.dtype)

    def input_grams(self, names, n):
        inputs = [torch.randn(2, 5, generator=self.rng("gram", name), dtype=self.delta.dtype) for name in names]
        return [x @ x.T / 5 for x in inputs]


def let_train(server, theta, client):
    """Return the ClientUpdate that the client makes of the Server's model `theta [dim]`, before it crosses the wire."""
    algorithm, compressor = server.stateful
    received, client.received = algorithm.parted(algorithm.whole_broadcast(theta), algorithm.broadcasts)
    update = algorithm.train(received, client)
    update.delta, update.mask = compressor.compress(update.delta, client.start, client)
    return update


def arrive(server, client, update):
    """Return the update as the server has it once it has crossed a wire that rounds nothing."""
    algorithm = server.algorithm
    arrived = algorithm.decoded(algorithm.joined(update.delta, update.more), update.mask)
    for keeps in server.stateful:
        keeps.acknowledge(client, arrived)
    return arrived


def send(server, theta, deltas, ids=range(99), round=1):
    """Let a client train each of the `deltas` from `theta`; return the ClientUpdates that arrive."""
    clients = [FakeClient(delta, client_id, round) for delta, client_id in zip(deltas, ids, strict=False)]
    return [arrive(server, client, let_train(server, theta, client)) for client in clients]


def merge(server, theta, updates, weights, ids=range(99), round=1):
    """Return the server's next model [dim] of the ClientUpdates, given its last; weights: of the clients, numbers."""
    one = torch.ones(())
    arriving = server.begin(round)
    if server.keeps_all:
        arriving.rows = theta.new_empty(len(updates), server.algorithm.upload_dim)
    arriving.ids = list(ids)[: len(updates)]
    for i, (client_id, update, weight) in enumerate(zip(arriving.ids, updates, list(weights), strict=True)):
        if server.keeps_all:
            arriving.rows[i] = server.algorithm.joined(update.delta, update.more)
        masked = update.mask is not None
        result = ClientResult(client_id, float(weight), 1, 0, 1, one, one, one, one, masked)
        arriving.take(result, update, server.weight_of(result))
    aggregate = server.aggregate(arriving, list(range(len(updates))))
    return server.algorithm.merge(theta, server.rule(aggregate), aggregate)


def one_round(server, theta, deltas, weights, ids=range(99), round=1):
    """Return the server's next model after clients trained the `deltas` from `theta`."""
    return merge(server, theta, send(server, theta, deltas, ids, round), weights, ids, round)
