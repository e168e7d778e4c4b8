"""Federated averaging, which all other algorithms derive from."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedmerge.client_update import ClientResult, ClientUpdate
from fedmerge.component import Stateful
from fedmerge.declared import check_vector, mistake
from fedmerge.merging import Aggregate
from fedmerge.networks import Layout
from fedmerge.registry import algorithm

if TYPE_CHECKING:
    from fedmerge.local_training.client import Client
    from fedmerge.local_training.trainer import Trainer


@dataclass(frozen=True)
class RunContext:
    """What an algorithm may know of the run that it is part of."""

    n_clients: int = 1  # all there are, whether or not they have samples
    n_rounds: int = 1
    participation: float = 1.0
    momentum: float = 0.0  # of the clients' optimiser
    server_residual: bool = False  # whether the server keeps what it does not apply


@algorithm("fedavg", title="FedAvg", paper="McMahan et al. 2017")
class FedAvg(Stateful):
    """the average of the clients' updates, weighted by their samples (McMahan et al. 2017, Algorithm 1)

    What a server algorithm is: what clients begin from, what is added to their gradients, what they send besides their
    change, and what the server makes of the merged step. How they train, what of a change is sent and how changes are
    merged are chosen apart from it (--local, --compressor, --merge).

    A model is a vector [dim]: the trainable weights [n_trainable] first, then the float buffers. Momentum and
    corrections act on the weights; buffers are averaged and always sent whole.
    """

    defaults = {}  # not inherited
    presets = {}
    communicates = True  # whether anything crosses a wire
    personalises = False  # whether `client_model` gives clients other models than `global_model`
    own = None  # places in the vector [dim], ascending, of what stays with the clients: it does not cross the wire
    uploads = ()  # names of vectors [n_trainable] that a client sends besides its change
    broadcasts = ()  # names of attributes, vectors [n_trainable], that the server sends besides its model
    statistics = ()  # of merging.statistic, or of `uploads`, what `merge` needs beside the merged step
    optional_hooks = {"gradient_correction": ("w", "start", "client")}
    rule_uploads = {}  # {name: length} of what a merging rule has clients send besides
    measure_for_rule = None  # (client) -> {name: vector} of these, after it trained
    gradient_correction = None  # (w [n_trainable], start [n_trainable], client) -> what is added to a local gradient

    def __init__(self, layout: Layout, run: RunContext | None = None, **options):
        """layout: the model's networks.Layout; run: a RunContext; options: the values of `self.options`."""
        super().__init__(**options)
        self.layout, self.run = layout, run or RunContext()
        self.compressor = None  # that of the run

    def begin(self, theta: Tensor, trainer: "Trainer") -> int | None:
        """Prepare, before the first round, with what all clients hold; `theta [dim]`, the first model, may be changed.

        trainer: a local_training.Trainer. Returns None, or, if that took every client an upload of so many numbers and
        a download of the first model and a mask of the weights that cross the wire from now on, how many. What does not
        cross is in `own`.
        """

    def broadcast(self, theta: Tensor) -> Tensor:
        """Return the vector [dim] from which clients start, given the server's model `theta [dim]`."""
        return theta

    def client_start(self, received: Tensor, client: "Client") -> Tensor:
        """Return the model [dim] that `client` trains, given the one it received."""
        return received

    def client_update(self, delta: Tensor, start: Tensor, client: "Client") -> ClientUpdate:
        """Return the ClientUpdate of a client's whole change, delta [dim]; it trained from `start [dim]`.

        client: a local_training.Client, which knows its id, the round, its settings, its steps and what it `received`.
        """
        return ClientUpdate(delta)

    def acknowledge(self, client: "Client", decoded: ClientUpdate) -> None:
        """Hear which ClientUpdate of `client` the server decoded: another than was sent, if values are rounded."""

    def client_weight(self, result: ClientResult, weight: float) -> float:
        """Return the weight in the merge of a client, given its ClientResult and its share by --weighting."""
        return weight

    def merge(self, theta: Tensor, step: Tensor, aggregate: Aggregate) -> Tensor:
        """Return the server's next model [dim], given its last and the merged step [dim], which is used up.

        aggregate: a merging.Aggregate: who arrived, and the means of `statistics`.
        """
        return step.add_(theta)

    def global_model(self, theta: Tensor) -> Tensor:
        """Return the model [dim] that is evaluated, given the server's `theta [dim]`."""
        return theta

    def client_model(self, theta: Tensor, client_id: int) -> Tensor:
        """Return the model [dim] that a client uses, given the server's `theta [dim]`."""
        return self.global_model(theta)

    def own_correction(self, common: Tensor) -> Callable | None:
        """Return the `gradient_correction` with which a client trains the model that it uses once more, at the end.

        common [dim]: the model that all share.
        """
        return self.gradient_correction

    # ----------------------------------------------------------------------------------------------------------------
    # What is done with the hooks

    def train(self, received: Tensor, client: "Client") -> ClientUpdate:
        """Let `client` train from the model `received [dim]`; return its ClientUpdate, before anything is left out."""
        client.downloaded = received
        start = self.client_start(received, client)
        check_vector(start, received, self.layout.dim, self, "the model from client_start")
        trained = client.train(start, self.gradient_correction)
        delta = torch.sub(trained, start, out=client.row[: self.layout.dim])
        more = {} if self.measure_for_rule is None else self.measure_for_rule(client)
        update = self._checked(self.client_update(delta, start, client), delta)
        update.more |= more
        return update

    def _checked(self, update, delta):
        """Return what `client_update` returned, vectors in the order of `uploads`; InputError if it is none to send."""
        if not isinstance(update, ClientUpdate):
            raise mistake(self, f"client_update returns a {type(update).__name__}, not a ClientUpdate")
        if set(update.more) != set(self.uploads):
            sent, named = (", ".join(names) or "none" for names in (update.more, self.uploads))
            raise mistake(self, f"client_update sends besides the change: {sent}; uploads names: {named}")
        check_vector(update.delta, delta, self.layout.dim, self, "the change from client_update")
        n = self.layout.n_trainable
        update.more = {
            name: check_vector(update.more[name], delta, n, self, f"{name} from client_update") for name in self.uploads
        }
        return update

    def joined(self, vector: Tensor, more: dict) -> Tensor:
        """Return `vector [dim]` with the vectors {name: [n_trainable]} behind it, as it crosses the wire."""
        return torch.cat([vector, *more.values()]) if more else vector

    def parted(self, vector: Tensor, names: tuple) -> tuple[Tensor, dict]:
        """Return what `joined` put together: the vector [dim], and {name: [n_trainable]}, all views; of rows, too.

        What is in `rule_uploads` has the length that it says.
        """
        lengths = [self.rule_uploads.get(name, self.layout.n_trainable) for name in names]
        ends = list(accumulate(lengths, initial=self.layout.dim))
        places = zip(names, pairwise(ends), strict=True)
        return vector[..., : ends[0]], {name: vector[..., begin:end] for name, (begin, end) in places}

    def decoded(self, row: Tensor, mask: Tensor | None) -> ClientUpdate:
        """Return the ClientUpdate in a row [upload_dim], as it crossed the wire."""
        delta, more = self.parted(row, self.all_uploads)
        return ClientUpdate(delta, mask, **more)

    def whole_broadcast(self, theta: Tensor) -> Tensor:
        """Return all that the server sends, in one vector: `broadcast`, and what is named in `broadcasts`."""
        model, more, n = self.broadcast(theta), {}, self.layout.n_trainable
        check_vector(model, theta, self.layout.dim, self, "the model from broadcast")
        for name in self.broadcasts:
            if not hasattr(self, name):
                raise mistake(self, f"broadcasts names {name}, but there is no such attribute: name it in server_state")
            value = getattr(self, name)
            more[name] = theta.new_zeros(n) if value is None else value
            check_vector(more[name], theta, n, self, f"self.{name}, which is broadcast,")
        return self.joined(model, more)

    @property
    def all_uploads(self) -> tuple:
        """Names of all that a client sends besides its change."""
        return (*self.uploads, *self.rule_uploads)

    @property
    def upload_dim(self) -> int:
        """How many numbers a client's upload has when nothing is left out."""
        return self.layout.dim + len(self.uploads) * self.layout.n_trainable + sum(self.rule_uploads.values())
