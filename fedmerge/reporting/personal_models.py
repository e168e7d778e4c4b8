"""Personal models of a run: every client trains once more; what it is worth, whole and as a part.

Clients train and are judged side by side, as in a round.
"""

import math
import sys
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from fedmerge import partitions, provenance, saving, wire
from fedmerge.client_update import ClientUpdate
from fedmerge.config.run_name import settings_of
from fedmerge.errors import InputError
from fedmerge.randomness import generator
from fedmerge.registry import COMPRESSORS
from fedmerge.reporting.progress import say
from fedmerge.reporting.task_mask_parts import TaskMasks, with_part
from fedmerge.simulation import personal_parts
from fedmerge.simulation.server import chosen_options

WITHOUT = {"full_accuracy": None, "personal_accuracy": None}  # what is known of a client without samples


def save_clients(run, saver=None, say=say):
    """Write every client's personal part to --save_clients; return what personal_parts.summary says of them.

    run: an Experiment; say: called with a line on them. Parts that an earlier process of this run left whole stay.
    Raises FloatingPointError if a client diverges, and Interrupted, when the clients at hand are saved, if the
    CheckpointPolicy `saver` heard a signal.
    """
    settings, server, folder = run.settings, run.server, Path(run.settings.save_clients)
    judge, shared = Judge(run.evaluator), server.served()
    n = server.layout.n_trainable
    kept = personal_parts.begin(folder, origin_of(run), shared, n, settings.n_clients, run.start)
    chooser, histograms = chooser_of(run), run.histograms().tolist()
    kept |= {n: WITHOUT | {"client": n, "histogram": histograms[n]} for n in server.empty}
    left = [n for n in range(settings.n_clients) if n not in kept]
    tasks = (partial(make_part, server, judge, chooser, shared, n, histograms[n]) for n in left)
    made = run.clients.threads.run(tasks, pause=lambda: saver is not None and saver.stop.number is not None)
    for n, data, accuracies in progress(settings, made, len(kept), settings.n_clients):
        kept[n] = personal_parts.add(folder, n, data, {"histogram": histograms[n]} | accuracies)
    if len(kept) < settings.n_clients:
        saver.raise_if_stopped()
    entries = [kept[n] for n in range(settings.n_clients)]
    personal_parts.finish(folder, settings_of(settings), entries)
    return report(folder, entries, judge.of_all(shared, histograms), server.layout.dim, say)


def origin_of(run):
    """Return {name: plain value}: with the shared model, all that a client's part hangs on."""
    return {
        "run": run.name,
        "parts": [getattr(run.settings, name) for name in personal_parts.PART_OPTIONS],
        "data": run.splits.fingerprint,
        "split": partitions.partition_hash(run.clients.parts),
        "code": provenance.code_hash(vars(run.settings)),
        **({"frozen": run.model.frozen_crc} if run.model.frozen_crc else {}),
    }


def chooser_of(run):
    """Return what chooses what a client's part holds: a Compressor, or TaskMasks."""
    if run.start is None:
        return part_compressor(run.server)
    return TaskMasks(run.start, run.settings.part_kind, run.settings.tall_lambda)


def part_compressor(server):
    """Return the compressor that chooses what of a client's change goes into its part: one that keeps nothing back."""
    settings, share = server.settings, server.settings.part_sparsity
    if server.algorithm.personalises and share is None:  # what it does not send is its own
        return COMPRESSORS["none"](server.layout)
    kind = COMPRESSORS[settings.compressor]
    if server.algorithm.personalises or (share is not None and "sparsity" not in kind.options):
        return COMPRESSORS["topk"](server.layout, sparsity=share, mask_scope="global")
    options = chosen_options(settings, kind.options)
    if share is not None:
        options["sparsity"] = share
    return kind(server.layout, **options)


def make_part(server, judge, chooser, shared, client_id, histogram, trainer):
    """Let a client train once more; return its id, its part to the model `shared [dim]`, and {accuracy: figure}.

    It starts from the model that it uses, the shared one where the algorithm gives it none of its own. The part is as
    bytes. chooser: see chooser_of; trainer: the local_training.Trainer that is free for it.
    """
    settings, n = server.settings, server.layout.n_trainable
    start = server.algorithm.client_model(server.common(), client_id)
    client = trainer.client(client_id, settings.n_epochs + 1)
    sent = server.crossing.whole(server.downlink.model)
    _, client.received = server.algorithm.parted(sent, server.algorithm.broadcasts)
    change = client.train(start, server.algorithm.own_correction(server.common())) - start
    if not math.isfinite(client.loss + change.sum()):
        raise FloatingPointError(
            f"--save_clients: client {client_id} diverges as it trains once more; the run itself is finished: leave "
            "--save_clients out, or --overwrite with a smaller --lr"
        )
    full, bits, initial = start + change, settings.part_bits or settings.value_bits, None
    if isinstance(chooser, TaskMasks):
        update, bits, initial = chooser.part(full, shared, n), chooser.bits, chooser.start
    else:
        update = relative_to(shared, start, ClientUpdate(*chooser.compress(change, start, client)), change)
    rng = generator(settings.seed, "personal", client_id)
    data = wire.encode(wire.pack(update, n, bits, rng, client.round, client_id))
    own = with_part(shared, wire.decode(data, n, len(shared) - n, shared.device), initial)
    reached = judge(full, histogram, trainer.model)
    personal = reached if torch.equal(own, full) else judge(own, histogram, trainer.model)
    return client_id, data, {"full_accuracy": reached, "personal_accuracy": personal}


def relative_to(shared, start, update, change):
    """Return the ClientUpdate that leads from the model `shared [dim]` to where `update` leads from `start [dim]`.

    What the client has of its own, in which its start is not the shared model, is in it whole: change [dim] is what it
    trained, before some of it was chosen for the update.
    """
    own = start != shared
    mask = None if update.mask is None else update.mask | own[: len(update.mask)]
    return ClientUpdate(torch.where(own, start - shared + change, update.delta), mask)


class Judge:
    """Tells what models reach on clients' own mixes of labels, from the test images of the classes that matter."""

    def __init__(self, evaluator):
        self.evaluator, self.test = evaluator, evaluator.splits.test
        self.labels = self.test.labels.cpu()

    def __call__(self, vector, histogram, model):
        """Return the accuracy of the model `vector [dim]` on a mix `histogram [n_classes]`; model: a free FlatModel."""
        held = torch.tensor(histogram) > 0
        places = held[self.labels].nonzero().view(-1)  # the others have no weight
        if not len(places):
            return 0.0  # as own_accuracy has it where no test image says anything
        logits = self.evaluator.predict(vector, self.test, places.to(self.test.labels.device), model)
        return personal_parts.own_accuracy(logits.argmax(1).cpu(), self.labels[places], histogram)

    def of_all(self, vector, histograms):
        """Return the accuracy of one model `vector [dim]` on each of the mixes."""
        predictions = self.evaluator.predict(vector, self.test).argmax(1).cpu()
        return [personal_parts.own_accuracy(predictions, self.labels, histogram) for histogram in histograms]


def judge_clients(run, folder):
    """Evaluate what --save_clients left in `folder`: its accuracy.csv and figure; return what the summary says."""
    entries = personal_parts.entries_of(folder)
    personal_parts.check_frozen(folder, run.model.frozen_crc)
    histograms, layout = [entry["histogram"] for entry in entries], run.server.layout
    if any(len(histogram) != run.splits.n_classes for histogram in histograms):
        raise InputError(f"{Path(folder) / personal_parts.INDEX}: was made for another dataset")
    judge, shared = Judge(run.evaluator), personal_parts.shared_model(folder, layout, run.device)
    start = personal_parts.start_model(folder, layout, run.device)

    def accuracy_of(client_id, trainer):
        if not sum(histograms[client_id]):
            return None
        message = personal_parts.part_of(folder, client_id, layout, run.device)
        return judge(with_part(shared, message, start), histograms[client_id], trainer.model)

    tasks = (partial(accuracy_of, client_id) for client_id in range(len(entries)))
    accuracies = list(progress(run.settings, run.clients.threads.run(tasks), 0, len(entries)))
    judged = [entry | {"personal_accuracy": a} for entry, a in zip(entries, accuracies, strict=True)]
    return report(folder, judged, judge.of_all(shared, histograms), layout.dim)


def progress(settings, made, done, total):
    """Yield what the iterator `made` yields, a client each, under a progress bar where there is a terminal."""
    silent = settings.quiet or not sys.stderr.isatty()
    return tqdm(made, "personal models", total, unit="client", initial=done, disable=silent)


def report(folder, entries, shared_accuracies, dim, say=say):
    """Write accuracy.csv and its figure into `folder` and say a line; return what personal_parts.summary says."""
    from fedmerge.reporting import run_figures  # matplotlib takes its time, and may be refused a place for its fonts

    rows = personal_parts.rows_of(folder, entries, shared_accuracies)
    path = Path(folder) / "accuracy"
    saving.write_atomic(path.with_suffix(".csv"), saving.csv_text(personal_parts.COLUMNS, rows))
    run_figures.plot_clients(rows, path)
    found = personal_parts.summary(rows, dim, len(personal_parts.models_in(folder)))
    said = (
        f"{folder}: {len(rows)} clients on their own mix of labels: shared model {found['shared_accuracy']:.4f}, with "
        f"their parts {found['personal_accuracy']:.4f}, full copies {found['full_accuracy']:.4f}; "
        f"{found['client_bytes'] / 1e6:.3f} MB of parts, {found['times_smaller']:.1f} times less than full copies "
        f"({found['times_smaller_with_shared']:.1f} with the shared model); {path}.csv and .png"
    )
    say(said)
    return found
