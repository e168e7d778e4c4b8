"""Personal models of a fedalg.Experiment: every client trains once more; what it is worth, whole and as a part.

Clients train and are judged side by side, as in a round.
"""

import contextlib
import math
import sys
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from fedmerge import partitions, provenance, saving, wire
from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.algorithms.las import LaSFL
from fedmerge.client_update import Update
from fedmerge.config.run_name import settings_of
from fedmerge.errors import InputError
from fedmerge.randomness import generator
from fedmerge.reporting import metrics_csv, run_record
from fedmerge.simulation import evaluation, personal_parts

WITHOUT = {"full_accuracy": None, "personal_accuracy": None}  # what is known of a client without samples


def save_clients(exp, keeper=None):
    """Write every client's personal part to --save_clients; return what personal.summary says of them.

    Parts that an earlier process of this run left whole stay. Raises FloatingPointError if a client diverges, and
    Interrupted, when the clients at hand are saved, if the Keeper heard a signal.
    """
    args, folder, layout = exp.args, Path(exp.args.save_clients), exp.model.layout
    judge, shared = Judge(exp), evaluation.served(exp)
    kept = personal_parts.begin(folder, origin_of(exp), shared, layout.n_trainable, args.n_clients)
    chooser, histograms = part_chooser(exp.algorithm, args), run_record.histograms(exp).tolist()
    kept |= {number: WITHOUT | {"client": number, "histogram": histograms[number]} for number in exp.empty}
    left = [number for number in range(args.n_clients) if number not in kept]
    tasks = (partial(make_part, exp, judge, chooser, shared, number, histograms[number]) for number in left)
    made = exp.workers.run(tasks, pause=lambda: keeper is not None and keeper.asked is not None)
    for number, data, accuracies in progress(exp, made, len(kept), args.n_clients):
        kept[number] = personal_parts.add(folder, number, data, {"histogram": histograms[number]} | accuracies)
    if len(kept) < args.n_clients:
        keeper.heed(exp)
    entries = [kept[number] for number in range(args.n_clients)]
    personal_parts.finish(folder, settings_of(args), entries)
    return report(exp, folder, entries, judge.of_all(shared, histograms))


def origin_of(exp):
    """Return {name: plain value}: with the shared model, all that a client's part hangs on."""
    return {
        "run": exp.name,
        "parts": [getattr(exp.args, name) for name in personal_parts.PART_OPTIONS],
        "data": exp.splits.fingerprint,
        "split": partitions.partition_hash(exp.parts),
        "code": provenance.code_hash(vars(exp.args)),
    }


def part_chooser(algorithm, args):
    """Return the algorithm that chooses what of a client's change goes into its part: one that holds nothing back."""
    options = {name: getattr(algorithm, name) for name in algorithm.options}
    if "sparsity" in options and not algorithm.personalises:
        changes = {"residual": "none", "sparsity": args.part_sparsity or algorithm.sparsity}
        return type(algorithm)(algorithm.layout, **options | changes)
    if args.part_sparsity is not None:
        chooser = LaSFL(algorithm.layout, sparsity=args.part_sparsity, mask_scope="global")
    elif algorithm.personalises:  # it keeps what it does not send
        chooser = FedAvg(algorithm.layout)
    else:
        return type(algorithm)(algorithm.layout, **options)
    chooser.pull = algorithm.pull
    return chooser


def make_part(exp, judge, chooser, shared, number, histogram, trainer):
    """Let client `number` train once more; return it, its part to the model `shared [dim]`, and {accuracy: figure}.

    It starts from the model that it uses, the shared one where the algorithm gives it none of its own. The part is as
    bytes. trainer: the local_training.Trainer that is free for it.
    """
    args, n = exp.args, exp.model.layout.n_trainable
    start = exp.algorithm.personal(evaluation.common(exp), number)
    client = trainer.client(number, args.n_epochs + 1)
    client.row = torch.empty_like(shared)
    update = chooser.local_update(start, client)
    if not math.isfinite(client.loss + client.row.sum()):
        raise FloatingPointError(
            f"--save_clients: client {number} diverges as it trains once more; the run itself is finished: leave "
            "--save_clients out, or --overwrite with a smaller --lr"
        )
    rng = generator(args.seed, "personal", number)
    update = relative_to(shared, start, update, client.row)
    data = wire.encode(wire.pack(update, n, args.part_bits or args.value_bits, rng, client.round, number))
    full = start + client.row  # the row holds the change before the algorithm chose of it
    part = wire.decode(data, n, len(shared) - n, shared.device).unpack(torch.empty_like(shared))
    reached = judge(full, histogram, trainer.model)
    with_part = reached if torch.equal(shared + part, full) else judge(shared + part, histogram, trainer.model)
    return number, data, {"full_accuracy": reached, "personal_accuracy": with_part}


def relative_to(shared, start, update, change):
    """Return the Update that leads from the model `shared [dim]` to where `update` leads from `start [dim]`.

    What the client has of its own, in which its start is not the shared model, is in it whole: change [dim] is what it
    trained, before some of it was chosen for the update.
    """
    own = start != shared
    mask = None if update.mask is None else update.mask | own[: len(update.mask)]
    return Update(torch.where(own, start - shared + change, update.delta), mask)


class Judge:
    """Tells what models reach on clients' own mixes of labels, from the test images of the classes that matter."""

    def __init__(self, exp):
        self.exp, self.labels = exp, exp.splits.test.labels.cpu()

    def __call__(self, vector, histogram, model):
        """Return the accuracy of the model `vector [dim]` on a mix `histogram [n_classes]`; model: a free FlatModel."""
        test, held = self.exp.splits.test, torch.tensor(histogram) > 0
        places = held[self.labels].nonzero().view(-1)  # the others have no weight
        if not len(places):
            return 0.0  # as own_accuracy has it where no test image says anything
        logits = evaluation.predict(self.exp, vector, test, places.to(test.labels.device), model)
        return personal_parts.own_accuracy(logits.argmax(1).cpu(), self.labels[places], histogram)

    def of_all(self, vector, histograms):
        """Return the accuracy of one model `vector [dim]` on each of the mixes."""
        predictions = evaluation.predict(self.exp, vector, self.exp.splits.test).argmax(1).cpu()
        return [personal_parts.own_accuracy(predictions, self.labels, histogram) for histogram in histograms]


def judge_clients(exp, folder):
    """Evaluate what --save_clients left in `folder`: its accuracy.csv and figure; return what personal.summary says."""
    _, entries = personal_parts.load(folder)
    histograms, layout = [entry["histogram"] for entry in entries], exp.model.layout
    if any(len(histogram) != exp.splits.n_classes for histogram in histograms):
        raise InputError(f"{Path(folder) / personal_parts.INDEX}: was made for another dataset")
    judge, shared = Judge(exp), personal_parts.shared_model(folder, layout, exp.device)

    def accuracy_of(number, trainer):
        if not sum(histograms[number]):
            return None
        vector = shared + personal_parts.part_of(folder, number, layout, exp.device)
        return judge(vector, histograms[number], trainer.model)

    tasks = (partial(accuracy_of, number) for number in range(len(entries)))
    accuracies = list(progress(exp, exp.workers.run(tasks), 0, len(entries)))
    judged = [entry | {"personal_accuracy": a} for entry, a in zip(entries, accuracies, strict=True)]
    return report(exp, folder, judged, judge.of_all(shared, histograms))


def progress(exp, made, done, total):
    """Yield what the iterator `made` yields, a client each, under a progress bar where there is a terminal."""
    silent = exp.args.quiet or not sys.stderr.isatty()
    return tqdm(made, "personal models", total, unit="client", initial=done, disable=silent)


def report(exp, folder, entries, shared_accuracies):
    """Write accuracy.csv and its figure into `folder` and print a line; return what personal.summary says."""
    import plotting

    rows = personal_parts.rows_of(folder, entries, shared_accuracies)
    path = Path(folder) / "accuracy"
    saving.write_atomic(path.with_suffix(".csv"), metrics_csv.csv_text(personal_parts.COLUMNS, rows))
    plotting.plot_clients(rows, path)
    found = personal_parts.summary(rows, exp.model.layout.dim)
    said = (
        f"{folder}: {len(rows)} clients on their own mix of labels: shared model {found['shared_accuracy']:.4f}, with "
        f"their parts {found['personal_accuracy']:.4f}, full copies {found['full_accuracy']:.4f}; "
        f"{found['client_bytes'] / 1e6:.3f} MB of parts, {found['times_smaller']:.1f} times less than full copies "
        f"({found['times_smaller_with_shared']:.1f} with the shared model); {path}.csv and .png"
    )
    with contextlib.suppress(OSError):  # all is there, whether or not somebody reads of it
        print(said, flush=True)
    return found
