"""Personal models on disk: one shared model, and for each client the sparse part that makes it its own.

`--save_clients DIR` leaves a payload file of the shared model, one of each client's part, and clients.json;
`--evaluate_clients DIR` needs nothing else but the test set. A client's accuracy is that on its own mix of labels: the
accuracy on each class of the test set, weighted by how many training samples of the class the client holds.
"""

from pathlib import Path

import torch

import payload
import records
import utils
from agg_utils import Update
from utils import InputError, generator

FORMAT = "fedalg-clients-1"
INDEX, SHARED = "clients.json", "shared.payload"
COLUMNS = ["client", "samples", "bytes", "shared_accuracy", "personal_accuracy", "full_accuracy"]


def part_file(folder, number):
    return Path(folder) / f"client_{number:04d}.payload"


def check_folder(folder):
    """Raise InputError if --save_clients would write over something."""
    if Path(folder).is_dir() and any(Path(folder).iterdir()):
        raise InputError(f"--save_clients {folder}: is not empty; another folder, or --overwrite")


def own_accuracy(predictions, labels, histogram):
    """Return the accuracy of predictions int64 [N] of `labels` on a client's mix of labels, `histogram` [n_classes]."""
    n_classes = len(histogram)
    hits = torch.bincount(labels[predictions == labels], minlength=n_classes).double()
    totals = torch.bincount(labels, minlength=n_classes).double()
    weights = torch.tensor(histogram, dtype=torch.float64) * (totals > 0)  # a class without a test image says nothing
    return float((weights * hits / totals.clamp(min=1)).sum() / weights.sum().clamp(min=1))


def save(folder, shared, clients, algorithm, bits, histograms, settings, labels, predict):
    """Let each of the local_training.Clients train once more from `shared [dim]`; write what it would send as its part.

    algorithm: one that holds nothing back for later. bits: of a value in a part. settings: those of the run, for
    clients.json. predict(vector [dim]) returns predictions int64 [n_test] of the test set with `labels`: here, what a
    full copy would be worth.
    """
    folder, n = Path(folder), algorithm.layout.n_trainable
    for earlier in folder.glob("client_*.payload"):  # --overwrite
        earlier.unlink()
    (folder / INDEX).unlink(missing_ok=True)
    records.write_atomic(folder / SHARED, payload.encode(payload.pack(Update(shared), n, 32)))
    entries = []
    for client, histogram in zip(clients, histograms, strict=True):
        if not sum(histogram):  # the client has nothing to make the shared model its own with
            entries.append({"histogram": histogram, "full_accuracy": None})
            continue
        client.row = torch.empty_like(shared)
        update = algorithm.local_update(shared, client)
        if not (client.loss + client.row.sum()).isfinite():
            raise FloatingPointError(f"--save_clients: client {client.number} diverges as it trains once more")
        rng = generator(settings["seed"], "personal", client.number)
        message = payload.pack(update, n, bits, rng, client.round, client.number)
        records.write_atomic(part_file(folder, client.number), payload.encode(message))
        predictions = predict(shared + client.row)  # the row holds the change before the algorithm chose of it
        entries.append({"histogram": histogram, "full_accuracy": own_accuracy(predictions, labels, histogram)})
    records.write_json(folder / INDEX, {"format": FORMAT, "settings": settings, "clients": entries})


def load(folder):
    """Return (settings as an argparse.Namespace, entries) of clients.json. Raises InputError if it is not one."""
    path = Path(folder) / INDEX
    index = records.read_json(path)
    if index is None:
        raise InputError(f"--evaluate_clients {folder}: there is no {INDEX} in it")
    settings, entries = index.get("settings"), index.get("clients")
    if index.get("format") != FORMAT or not isinstance(settings, dict) or not isinstance(entries, list):
        raise InputError(f"{path}: is not of --save_clients")
    if not all(map(_is_entry, entries)) or not any(sum(entry["histogram"]) for entry in entries):
        raise InputError(f"{path}: has no clients, or one without a label histogram or an accuracy")
    return utils.checked_settings(settings, path), entries


def _is_entry(entry):
    """Tell whether it is what `save` writes of a client."""
    histogram = entry.get("histogram") if isinstance(entry, dict) else None
    accuracy = entry.get("full_accuracy") if isinstance(entry, dict) else None
    counts = isinstance(histogram, list) and all(type(count) is int and 0 <= count < 2**53 for count in histogram)
    if counts and not sum(histogram):
        return accuracy is None
    return counts and type(accuracy) in (int, float) and 0 <= accuracy <= 1


def evaluate(folder, entries, layout, labels, n_classes, predict, device="cpu"):
    """Return a row {column: value} of COLUMNS for each client that has samples; its part lies in `folder`."""
    shared = _read(Path(folder) / SHARED, layout, device).unpack(torch.empty(layout.dim, device=device))
    common, rows = predict(shared), []
    for number, entry in enumerate(entries):
        path, histogram = part_file(folder, number), entry["histogram"]
        if len(histogram) != n_classes:
            raise InputError(f"{path.with_name(INDEX)}: was made for another dataset")
        if not sum(histogram):
            continue
        message = _read(path, layout, device)
        if message.client != number:
            raise InputError(f"{path}: is the part of client {message.client}")
        part = message.unpack(torch.empty_like(shared))
        rows.append(
            {
                "client": number,
                "samples": sum(histogram),
                "bytes": path.stat().st_size,
                "shared_accuracy": own_accuracy(common, labels, histogram),
                "personal_accuracy": own_accuracy(predict(shared + part), labels, histogram),
                "full_accuracy": entry["full_accuracy"],
            }
        )
    return rows


def _read(path, layout, device):
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    try:
        return payload.decode(data, layout.n_trainable, layout.dim - layout.n_trainable, device)
    except payload.PayloadError as error:
        raise InputError(f"{path}: {error}") from None


def summary(rows, dim):
    """Return {name: figure} of evaluate()'s rows: mean accuracies, bytes, and how much smaller than full copies."""
    copies, parts = len(rows) * payload.dense_bytes(dim), sum(row["bytes"] for row in rows)
    means = {name: sum(row[name] for row in rows) / len(rows) for name in COLUMNS[3:]}
    return means | {
        "client_bytes": parts,
        "times_smaller": copies / parts,
        "times_smaller_with_shared": copies / (parts + payload.dense_bytes(dim)),
    }
