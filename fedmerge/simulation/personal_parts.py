"""Personal models on disk: one shared model, and for each client the sparse part that makes it its own.

`--save_clients DIR` leaves a payload file of the shared model, one of each client's part, and clients.json; where parts
are masks, also start.payload, the initial model. `--evaluate_clients DIR` needs nothing else but the test set. A
client's accuracy is that on its own mix of labels: the accuracy on each class of the test set, weighted by how many
training samples of the class the client holds.

While clients are being saved there is clients.jsonl in place of clients.json: a line that says of which run and which
shared model they are, then a line for each part that is there, with its SHA-256, so that a run that was ended goes on
with the next client.
"""

import contextlib
import hashlib
import json
import sys
from pathlib import Path

import torch

from fedmerge import files, provenance, saving, wire
from fedmerge.client_update import ClientUpdate
from fedmerge.config.options import all_options
from fedmerge.config.parser import checked_settings
from fedmerge.config.run_name import differing_settings
from fedmerge.errors import InputError

FORMAT, UNDER_WAY = "fedalg-clients-1", "fedalg-clients-under-way-1"
INDEX, PROGRESS, SHARED, LOCK = "clients.json", "clients.jsonl", "shared.payload", ".lock"
START = "start.payload"
WRITTEN = (INDEX, PROGRESS, SHARED, START, "client_*.payload", "accuracy.*")
COLUMNS = ["client", "samples", "bytes", "shared_accuracy", "personal_accuracy", "full_accuracy"]
LONGEST = 2**20  # characters of a line of clients.jsonl
PART_OPTIONS = (
    "part_kind",
    "part_sparsity",
    "part_bits",
    "tall_lambda",
)  # settings that change parts, and nothing else of a run


def part_file(folder, number):
    return Path(folder) / f"client_{number:04d}.payload"


def check_links(folder):
    """Raise InputError if a file that is written into `folder` is there as a link, or as no file."""
    found = Path(folder).iterdir() if Path(folder).is_dir() else ()
    files.check_writable(*(path for path in found if any(map(path.match, (LOCK, *WRITTEN)))))


def own_accuracy(predictions, labels, histogram):
    """Return the accuracy of predictions int64 [N] of `labels` on a client's mix of labels, `histogram` [n_classes]."""
    n_classes = len(histogram)
    hits = torch.bincount(labels[predictions == labels], minlength=n_classes).double()
    totals = torch.bincount(labels, minlength=n_classes).double()
    weights = torch.tensor(histogram, dtype=torch.float64) * (totals > 0)  # a class without a test image says nothing
    return float((weights * hits / totals.clamp(min=1)).sum() / weights.sum().clamp(min=1))


def check_folder(folder, run=None):
    """Raise InputError if --save_clients would write over something; run: the name of one that goes on, if it does."""
    folder = Path(folder)
    there = [path for path in folder.iterdir() if path.name != LOCK] if folder.is_dir() else []
    if run is not None:  # its other outputs may lie there, too
        there = [path for path in there if any(map(path.match, WRITTEN))]
    if not there:
        return
    if run is None:
        raise InputError(f"--save_clients {folder}: is not empty; another folder, or --overwrite")
    if run not in (_index(folder).get("run"), _progress(folder)[0].get("run")):
        raise InputError(f"--save_clients {folder}: holds what is not of this run: move it away, or --overwrite")


def check_finished(folder, args, run):
    """Raise InputError if the parts in `folder` are not of the finished run of this name, with the settings `args`."""
    path = Path(folder) / INDEX
    index = _index(folder)
    settings = index.get("settings")
    if not isinstance(settings, dict):
        raise InputError(f"{path}: is not of --save_clients")
    differs = differing_settings(args, settings)
    differs += [name for name in PART_OPTIONS if settings.get(name, all_options()[name].default) != getattr(args, name)]
    for name in differs:
        raise InputError(
            f"{run} is finished, but {path} is of a run with {name} = {settings.get(name)}, not {getattr(args, name)}: "
            "name its own folder, or --overwrite"
        )
    if index.get("run", run) != run:
        raise InputError(f"{run} is finished, but {path} is of {index['run']}: name its own folder, or --overwrite")


def _index(folder):
    """Return what clients.json holds, {} if there is none."""
    return saving.read_json(Path(folder) / INDEX) or {}


def _progress(folder):
    """Return (what the first line of clients.jsonl says, the lines of clients) as far as they are whole."""
    path = Path(folder) / PROGRESS
    lines = list(_json_lines(path)) if path.is_file() else []
    return (lines[0], lines[1:]) if lines else ({}, [])


def _json_lines(path):
    """Yield the objects that the lines hold, up to the first that holds none: a kill may have torn the last."""
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in iter(lambda: file.readline(LONGEST), ""):
            value = None
            with contextlib.suppress(ValueError, RecursionError):
                value = json.loads(line)
            if not isinstance(value, dict):
                return
            yield value


def begin(folder, origin, shared, n_trainable, n_clients, start=None):
    """Make `folder` ready for the parts to the model `shared [dim]`; return {client: entry} of those that are there.

    origin: {name: plain value}, all that the parts hang on. A part stays if it was made of the same, and its file is
    as it was written; anything else that is in the way goes. start [dim]: the initial model, where parts are masks.
    """
    models = {SHARED: shared} | ({} if start is None else {START: start})
    data = {name: wire.encode(wire.pack(ClientUpdate(model), n_trainable, 32)) for name, model in models.items()}
    folder, header = Path(folder), origin | {Path(name).stem: hashlib.sha256(d).hexdigest() for name, d in data.items()}
    kept = {number: entry for number, entry in _left_by(folder, header, n_clients) if _is_whole(folder, entry)}
    lines = [{"format": UNDER_WAY} | header, *kept.values()]
    saving.write_atomic(folder / PROGRESS, "".join(map(_line, lines)))  # before anything of them is touched
    (folder / INDEX).unlink(missing_ok=True)
    own = {part_file(folder, number) for number in kept}
    for earlier in [*folder.glob("client_*.payload"), *folder.glob(".*.payload.*.tmp")]:
        if earlier not in own:
            earlier.unlink()
    (folder / START).unlink(missing_ok=True)
    for name, encoded in data.items():
        saving.write_atomic(folder / name, encoded)
    return kept


def add(folder, number, data, entry):
    """Write the part of client `number`, bytes, and what is known of it; return the entry {name: plain value}."""
    saving.write_atomic(part_file(folder, number), data)
    entry = {"client": number, "sha256": hashlib.sha256(data).hexdigest()} | entry
    with open(Path(folder) / PROGRESS, "a", encoding="utf-8") as file:
        file.write(_line(entry))
    return entry


def finish(folder, settings, entries):
    """Write clients.json, with which the folder is whole: the run's settings and the entry of each client."""
    folder = Path(folder)
    header, _ = _progress(folder)
    saving.write_json(folder / INDEX, header | {"format": FORMAT, "settings": settings, "clients": entries})
    (folder / PROGRESS).unlink()


def _line(value):
    return json.dumps(value, allow_nan=False) + "\n"


def _left_by(folder, header, n_clients):
    """Return [(client, entry)] of what an earlier process of the same run left."""
    found, entries = _progress(folder)
    if not found:
        found = _index(folder)
        entries = found.get("clients")
    if any(found.get(name) != value for name, value in header.items()) or not isinstance(entries, list):
        return []
    numbered = [(entry.get("client"), entry) for entry in entries if _is_entry(entry)]
    return [(n, entry) for n, entry in numbered if type(n) is int and 0 <= n < n_clients]


def _is_whole(folder, entry):
    """Tell whether the client's part is as it was written, and its accuracies are known."""
    try:
        data = part_file(folder, entry["client"]).read_bytes()
    except OSError:
        return False
    return hashlib.sha256(data).hexdigest() == entry.get("sha256") and _is_accuracy(entry.get("personal_accuracy"))


def load(folder, data_root=None):
    """Return the settings in clients.json as an argparse.Namespace. Raises InputError if it is not one.

    data_root: where this machine has the datasets.

    Says so on standard error if other code than this left it.
    """
    path = Path(folder) / INDEX
    index = saving.read_json(path)
    if index is None:
        raise InputError(f"--evaluate_clients {folder}: there is no {INDEX} in it")
    settings, entries = index.get("settings"), index.get("clients")
    if index.get("format") != FORMAT or not isinstance(settings, dict) or not isinstance(entries, list):
        raise InputError(f"{path}: is not of --save_clients")
    if not all(map(_is_entry, entries)) or not any(sum(entry["histogram"]) for entry in entries):
        raise InputError(f"{path}: has no clients, or one without a label histogram or an accuracy")
    checked = checked_settings(settings, path, data_root)
    if "code" in index and index["code"] != provenance.code_hash(vars(checked)):
        print(f"warning: {path} was left by another version of the code", file=sys.stderr)
    return checked


def entries_of(folder):
    """Return the entries of the clients in a folder that `load` has read."""
    return _index(folder)["clients"]


def check_frozen(folder, crc):
    """Raise InputError unless the models in `folder` stand on these weights that are not trained, FlatModel.frozen_crc.

    They are not in the folder: the seed, --pretrained or --init_weights gives them.
    """
    if _index(folder).get("frozen", "") != crc:
        raise InputError(f"{Path(folder) / INDEX}: is of a run whose weights that are not trained are others")


def _is_entry(entry):
    """Tell whether it is what `finish` writes of a client."""
    histogram = entry.get("histogram") if isinstance(entry, dict) else None
    counts = isinstance(histogram, list) and all(type(count) is int and 0 <= count < 2**53 for count in histogram)
    if counts and not sum(histogram):  # a client without samples has no part
        return entry.get("full_accuracy") is None
    return counts and _is_accuracy(entry.get("full_accuracy"))


def _is_accuracy(value):
    return type(value) in (int, float) and 0 <= value <= 1


def shared_model(folder, layout, device="cpu"):
    """Return the shared model [dim] in `folder`."""
    return _read(Path(folder) / SHARED, layout, device).unpack(torch.empty(layout.dim, device=device))


def models_in(folder):
    """Return the names of the files of whole models that a finished folder holds."""
    return [name for name in (SHARED, START) if Path(name).stem in _index(folder)]


def start_model(folder, layout, device="cpu"):
    """Return the initial model [dim] in `folder`, None if its parts are no masks."""
    if START not in models_in(folder):
        return None
    return _read(Path(folder) / START, layout, device).unpack(torch.empty(layout.dim, device=device))


def part_of(folder, number, layout, device="cpu"):
    """Return the Message of the part of client `number` in `folder`."""
    path = part_file(folder, number)
    message = _read(path, layout, device)
    if message.client != number:
        raise InputError(f"{path}: is the part of client {message.client}")
    return message


def rows_of(folder, entries, shared_accuracies):
    """Return a row {column: value} of COLUMNS for each client that has samples.

    It is made of the client's entry and of the accuracy of the shared model.
    """
    return [
        {
            "client": number,
            "samples": sum(entry["histogram"]),
            "bytes": part_file(folder, number).stat().st_size,
            "shared_accuracy": shared,
            "personal_accuracy": entry["personal_accuracy"],
            "full_accuracy": entry["full_accuracy"],
        }
        for number, (entry, shared) in enumerate(zip(entries, shared_accuracies, strict=True))
        if sum(entry["histogram"])
    ]


def _read(path, layout, device):
    try:
        data = files.read_bytes(path, 2 * wire.dense_bytes(layout.dim))
    except FileNotFoundError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    try:
        return wire.decode(data, layout.n_trainable, layout.dim - layout.n_trainable, device)
    except wire.PayloadError as error:
        raise InputError(f"{path}: {error}") from None


def summary(rows, dim, n_models=1):
    """Return {name: figure} of the rows of `rows_of`: mean accuracies, bytes, and how much smaller than full copies.

    n_models: how many models all have: the shared one, or the initial one, too.
    """
    copies, parts = len(rows) * wire.dense_bytes(dim), sum(row["bytes"] for row in rows)
    means = {name: sum(row[name] for row in rows) / len(rows) for name in COLUMNS[3:]}
    return means | {
        "client_bytes": parts,
        "times_smaller": copies / parts,
        "times_smaller_with_shared": copies / (parts + n_models * wire.dense_bytes(dim)),
    }
