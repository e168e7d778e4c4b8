"""The server of a run: its model and algorithm, who takes part, what clients download, and what all of that weighs."""

import sys
from functools import partial

import torch

from fedmerge import merging
from fedmerge.algorithms.fedavg import FedAvg, RunContext
from fedmerge.client_update import ClientUpdate
from fedmerge.compressors import ErrorFeedback
from fedmerge.declared import check_vector, mistake
from fedmerge.errors import InputError
from fedmerge.registry import ALGORITHMS, COMPRESSORS, MERGING_RULES
from fedmerge.simulation.cohort import Cohort
from fedmerge.simulation.head_start import HeadSettings, fit_head
from fedmerge.simulation.sampling import cohort_size, dropped, sample_clients
from fedmerge.wire import Crossing, Downlink, DownlinkSettings, dense_bytes, pack, payload_bytes

BYTES = ["bytes_up", "bytes_down", "bytes_up_total", "bytes_down_total"]


class Server:
    """What the server knows: `theta [dim]` is its model, `downlink.model` what clients get of it.

    traffic: client -> [rounds, bytes up, bytes down]; cohort: the Cohort of the round under way, None between rounds.
    """

    def __init__(self, settings, layout, theta, sizes):
        """settings: a Namespace of all flags; layout: a networks.Layout; sizes: each client's number of samples."""
        self.settings, self.layout, self.theta, self.sizes = settings, layout, theta, sizes
        self.algorithm, self.compressor = make_algorithm(settings, layout), make_compressor(settings, layout)
        self.algorithm.compressor = self.compressor
        if settings.lora_merge == "products":
            check_step_is_taken(self.algorithm)
        rule = MERGING_RULES[settings.merge]
        options = chosen_options(settings, rule.registered.get("options", ()))
        self.rule, needs = partial(rule, layout=layout, **options), merging.needs_of(rule)
        self.algorithm.rule_uploads, self.algorithm.measure_for_rule = merging.measured_for(rule, layout, options)
        check_uploads(self.algorithm, rule)
        # Whether all updates of a round are needed at once.
        self.keeps_all = needs == merging.ALL or settings.lora_merge == "products"
        uploads = self.algorithm.uploads
        of_rule = tuple(self.algorithm.rule_uploads)
        self.statistics = merging.find_statistics(() if needs == merging.ALL else needs, of_rule, rule)
        self.statistics |= merging.find_statistics(self.algorithm.statistics, uploads, self.algorithm)
        self.empty = [client_id for client_id, size in enumerate(sizes) if not size]  # these never take part
        self._open_wire(settings.shared_init)
        self.traffic, self.cohort, self._all_rows = {}, None, None
        self.before = {}  # client -> (bytes up, bytes down) before the first round

    def _open_wire(self, shared_init):
        """Make what tells which numbers cross the wire, and what clients download."""
        s = self.settings
        how = DownlinkSettings(
            mode=s.downlink,
            keep=s.down_sparsity,
            bits=s.down_bits or s.value_bits,
            shared_init=shared_init,
            real=s.wire == "real",
            seed=s.seed,
        )
        self.crossing = Crossing(self.algorithm.own, self.layout, self.theta)
        broadcast = self.crossing.out(self.algorithm.whole_broadcast(self.theta))
        # Buffers that are sent in all rounds are in all messages, even where they are the same as before.
        self.n_skipped = self.crossing.n_buffers if s.bn_every > 1 else 0
        self.downlink = Downlink(broadcast, self.crossing.n_weights, s.n_clients, how, self.n_skipped)

    def begin_with(self, trainer):
        """Make the first head, and let the algorithm prepare; trainer: a local_training.Trainer, with all samples."""
        s, algorithm = self.settings, self.algorithm
        clients = [i for i, size in enumerate(self.sizes) if size]
        up, down = [0] * len(clients), 0
        first = 0 if s.shared_init else dense_bytes(len(algorithm.whole_broadcast(self.theta)))
        if s.head_init:
            how = HeadSettings(s.head_init, s.head_ridge, s.head_bits, s.wire == "real", s.seed)
            up, down = fit_head(how, trainer, self.theta, algorithm.own)
        n_up = algorithm.begin(self.theta, trainer)
        if n_up is not None:
            check_uploads(algorithm, self.rule.func)
            up, down = [n_bytes + dense_bytes(n_up) for n_bytes in up], down + self._mask_bytes(algorithm.own)
        if s.head_init or n_up is not None:
            self._open_wire(shared_init=True)  # from here on, everybody has the first model
            self.before = {i: (n_bytes, down + first) for i, n_bytes in zip(clients, up, strict=True)}

    def _mask_bytes(self, own):
        """Return the bytes that tell which weights cross the wire, all but those at `own`, int64 [k]."""
        crosses = torch.ones(self.layout.n_trainable, dtype=torch.bool, device=self.theta.device)
        crosses[own[own < len(crosses)].to(crosses.device)] = False
        return payload_bytes(pack(ClientUpdate(crosses.to(self.theta.dtype), crosses), len(crosses), 1))

    @property
    def cohort_size(self):
        """How many clients take part in a round."""
        return cohort_size(len(self.sizes) - len(self.empty), self.settings.participation)

    @property
    def stateful(self):
        """What keeps something between rounds here, or for clients here."""
        return self.algorithm, self.compressor

    # ----------------------------------------------------------------------------------------------------------------
    # A round

    def participants(self, round):
        """Return the ids of the clients of `round` whose updates arrive, most samples first, and of the others."""
        s = self.settings
        ids = sample_clients(s.n_clients, s.participation, s.seed, round, self.empty)
        lost = dropped(ids, s.dropout, s.seed, round) if s.dropout else []
        return sorted(set(ids) - set(lost), key=lambda client_id: (-self.sizes[client_id], client_id)), lost

    def sample(self, round):
        """Return the Cohort of `round`: the one under way, or a new one, whose lost clients have downloaded."""
        if self.cohort is None:
            self.cohort = self.begin(round)
            for client_id in self.cohort.lost:
                self.cohort.down[client_id], _ = self.downlink.download(client_id)
        return self.cohort

    def begin(self, round):
        """Return a Cohort of `round` of which nobody has downloaded or trained yet."""
        ids, lost = self.participants(round)
        return Cohort(round, ids, lost, self.new_sums(), self._rows(len(ids)) if self.keeps_all else None)

    def new_sums(self):
        """Return the WeightedSums in which updates are added up as they arrive."""
        return merging.WeightedSums({} if self.keeps_all else self.statistics, self.layout)

    def _rows(self, n):
        """Return [n, upload_dim] for all updates of a round: the same memory in every round, fresh one takes time."""
        if self._all_rows is None or len(self._all_rows) < n:
            self._all_rows = None  # before there is another
            self._all_rows = self.theta.new_empty(max(n, self.cohort_size), self.algorithm.upload_dim)
        return self._all_rows[:n]

    def skipped(self, round):
        """Return how many numbers behind the weights clients leave out in `round`: BatchNorm's statistics, or none."""
        sent = round % self.settings.bn_every == 0 or round == self.settings.n_epochs
        return 0 if sent else self.n_skipped

    def warn_of_old_statistics(self, round):
        """Say on standard error if BatchNorm's statistics should have come in a `round` of which nothing arrived."""
        if self.n_skipped and not self.skipped(round):
            said = "nobody's statistics arrived: those of BatchNorm are of an earlier round"
            print(f"warning: round {round}: {said}", file=sys.stderr)

    def weight_of(self, result):
        """Return the weight in the merge of a client, given its ClientResult."""
        share = result.n_samples if self.settings.weighting == "samples" else 1
        return self.algorithm.client_weight(result, share)

    def aggregate(self, cohort, whole):
        """Return the merging.Aggregate of the results at the places `whole` of cohort.done."""
        results = [cohort.done[i] for i in whole]
        places = slice(len(whole)) if len(whole) == len(cohort.done) else whole  # no copy of all updates
        weights = [self.weight_of(result) for result in results]
        if not 0 < sum(weights) < float("inf") or min(weights) < 0:
            raise mistake(self.algorithm, f"client_weight gives weights of which no mean can be made: {weights[:9]}")
        arrived = [
            merging.Arrival(r.client_id, r.n_samples, r.n_steps, weight)
            for r, weight in zip(results, weights, strict=True)
        ]
        n_clients = len(self.sizes) - len(self.empty)
        found = merging.Aggregate(arrived, round=cohort.round, n_clients=n_clients, seed=self.settings.seed)
        sums = cohort.sums
        if cohort.rows is not None:
            found.masks = cohort.masks_of(places)
            found.deltas, found.more = self.algorithm.parted(cohort.rows[places], self.algorithm.all_uploads)
            sums = merging.WeightedSums(self.statistics, self.layout)
            for i, weight in zip(whole, weights, strict=True):
                sums.add(self.algorithm.decoded(cohort.rows[i], cohort.mask_of(i)), weight)
        found.mean = sums.means(sum(weights), len(whole))
        return found

    def publish(self, round):
        """Make the server's model after `round`, or what of it goes into a sparse broadcast, the next one that clients
        download.
        """
        before = self.algorithm.snapshot()
        model = self.algorithm.whole_broadcast(self.theta)
        self.downlink.publish(self.crossing.out(model), buffers=not self.skipped(round))
        self.algorithm.check_unchanged(before, "as the server sent its model", but=self.algorithm.server_state)
        self.cohort = None

    def count_bytes(self, cohort):
        """Add the bytes of a Cohort to the traffic; return the row's columns."""
        up = {result.client_id: result.bytes for result in cohort.done}
        down = dict(cohort.down)
        before = self.before if cohort.round == 1 else {}
        for client_id, (own_up, own_down) in before.items():
            up[client_id] = up.get(client_id, 0) + own_up
            down[client_id] = down.get(client_id, 0) + own_down
        if not self.algorithm.communicates:
            up, down = {}, dict.fromkeys(down, 0)
        for client_id in down:
            rounds, *sent = self.traffic.get(client_id, (0, 0, 0))
            took_part = int(client_id in cohort.down)
            self.traffic[client_id] = [rounds + took_part, sent[0] + up.get(client_id, 0), sent[1] + down[client_id]]
        totals = [sum(client[i] for client in self.traffic.values()) for i in (1, 2)]
        return dict(zip(BYTES, [sum(up.values()), sum(down.values()), *totals], strict=True))

    # ----------------------------------------------------------------------------------------------------------------
    # Models

    def common(self):
        """Return the model [dim] that all share: the server's, or, with a sparse downlink, the clients'.

        What a broadcast holds besides the server's model, as FedACG's does, is taken off again.
        """
        if self.settings.downlink != "sparse":
            return self.theta
        sent = self.crossing.whole(self.downlink.model)
        broadcast, (model, _) = self.algorithm.broadcast(self.theta), self.algorithm.parted(sent, ())
        return model if broadcast is self.theta else model - (broadcast - self.theta)

    def served(self):
        """Return the model [dim] that the run is judged by; see `common`."""
        model, dim = self.algorithm.global_model(self.common()), self.layout.dim
        return check_vector(model, self.theta, dim, self.algorithm, "the model from global_model")


def chosen_options(settings, names):
    """Return {name: value} of the settings of these names."""
    return {name: getattr(settings, name) for name in names}


def check_step_is_taken(algorithm):
    """Raise InputError unless an algorithm adds the merged step to the model that clients had.

    The step of --lora_merge products changes the basis of the factors: momentum would carry that on as if it were
    progress, and a look-ahead is a model whose factors no product was made of.
    """
    if type(algorithm).merge is not FedAvg.merge or type(algorithm).broadcast is not FedAvg.broadcast:
        raise InputError(
            "--lora_merge products needs an algorithm that adds the merged step as it is, such as fedavg or fedprox, "
            f"not {algorithm.registered['name']}"
        )


def check_uploads(algorithm, rule):
    """Raise InputError unless clients can send what a merging rule has them send, besides what is the algorithm's."""
    both = set(algorithm.rule_uploads) & {*algorithm.uploads, *algorithm.broadcasts}
    if both:
        raise mistake(rule, f"uploads has {min(both)}, and so has {type(algorithm).__name__}: another name")
    if algorithm.rule_uploads and algorithm.own is not None:
        raise InputError(
            f"--merge {rule.registered['name']} needs an algorithm under which clients share all weights, not "
            f"{algorithm.registered['name']}"
        )


def make_algorithm(settings, layout):
    """Return the algorithm of the settings."""
    cls = ALGORITHMS[settings.algorithm]
    run = RunContext(
        n_clients=settings.n_clients,
        n_rounds=settings.n_epochs,
        participation=settings.participation,
        momentum=settings.momentum if settings.local_optimizer == "sgd" else 0.0,
        server_residual=settings.residual == "server",
    )
    return cls(layout, run, **chosen_options(settings, cls.options))


def make_compressor(settings, layout):
    """Return the compressor of the settings."""
    cls = COMPRESSORS[settings.compressor]
    feedback = ErrorFeedback(settings.residual_momentum) if settings.residual == "client" else None
    return cls(layout, feedback, **chosen_options(settings, cls.options))
