"""What a run says of itself: its final figures, its JSON; and whether it is there already."""

import sys
from contextlib import suppress
from pathlib import Path

from sklearn.metrics import f1_score, precision_score, recall_score

from fedmerge import datasets, partitions, provenance, saving, wire
from fedmerge.config.run_name import differing_settings, settings_of
from fedmerge.config.split_files import drawn_as, split_path, split_title
from fedmerge.errors import InputError
from fedmerge.registry import specs
from fedmerge.reporting import scores
from fedmerge.saving import read_json, write_json
from fedmerge.simulation import personal_parts


def note_failure(path, error):
    """Write into the record of a run why it ended, if that can still be written."""
    with suppress(OSError, InputError):
        record = read_json(path)
        if record is not None and not record.get("finished"):
            said = (
                str(error) if isinstance(error, (FloatingPointError, OSError)) else f"{type(error).__name__}: {error}"
            )
            write_json(path, record | {"failed": said})


def final_figures(run):
    """Return {name: figure} of a finished run; accuracy, F1, precision and recall (macro) are on the test set."""
    evaluated = [row for row in run.history.rows if "test_accs" in row]
    reached = scores.accuracies(evaluated)
    predicted, judged = run.history.judged
    truth, predicted = judged.labels.cpu(), predicted.cpu()
    macro = {"average": "macro", "zero_division": 0}
    up, down = (sum(row[key] for row in run.history.rows) for key in ("bytes_up", "bytes_down"))
    of_client = [up + down for _, up, down in run.server.traffic.values()]
    seconds = sum(row["train_seconds"] for row in run.history.rows)
    return {
        "accuracy": reached.pop("accuracy"),
        "f1": float(f1_score(truth, predicted, **macro)),
        "precision": float(precision_score(truth, predicted, **macro)),
        "recall": float(recall_score(truth, predicted, **macro)),
        "communication": (up + down) / len(run.history.rows),
        "train_time": seconds / len(run.history.rows),
        "bytes_up": up,
        "bytes_down": down,
        "bytes_per_client": sum(of_client) / len(of_client),
        "bytes_of_busiest_client": max(of_client),
        **reached,
        "train_seconds": seconds,
        "eval_seconds": sum(row.get("eval_seconds", 0) for row in run.history.rows),
    }


def domain_accuracy(run):
    """Return {domain: accuracy on its test images} of the last evaluation, of the domains that have any."""
    predicted, judged = run.history.judged
    of = {name: judged.domains == number for number, name in enumerate(run.splits.domains)}
    hits = predicted == judged.labels
    return {name: hits[there].float().mean().item() for name, there in of.items() if there.any()}


def record(run, finished, final=None):
    """Return what <run>.json says of the run."""
    layout, table, how = run.server.layout, run.histograms(), drawn_as(vars(run.settings))
    return {
        "run": run.name,
        "title": specs("algorithm")[run.settings.algorithm].title,
        "finished": finished,
        "failed": None,  # or why it ended before that
        "final": final,
        "settings": settings_of(run.settings),
        "environment": {
            **provenance.environment(run.device, run.settings.model_name),
            "code": provenance.code_hash(vars(run.settings)),
        },
        "payload_version": wire.VERSION,
        "model": {"weights": layout.n_trainable, "buffers": layout.dim - layout.n_trainable},
        "data": {
            "samples": {name: len(getattr(run.splits, name)) for name in ("train", "val", "test")},
            "mean": run.splits.mean.tolist(),
            "std": run.splits.std.tolist(),
            "crc32": run.splits.fingerprint,
        },
        "domain_accuracy": domain_accuracy(run) if finished else None,
        "traffic": [
            dict(zip(("client", "rounds", "bytes_up", "bytes_down"), (number, *counts), strict=True))
            for number, counts in sorted(run.server.traffic.items())
        ],
        "partition": {
            "name": run.split,
            "title": how and split_title(how),
            "sha256": partitions.partition_hash(run.clients.parts),
            "samples": int(table.sum()),  # that clients hold
            "skew": partitions.skew(table),
            "histograms": table.tolist(),
        },
    }


def already_finished(args, name):
    """Tell whether this very run is finished. Raises InputError if its name holds a finished run of other settings or
    on other data, or one that did not leave what is asked for now.

    Says so on standard error if other code or other versions of libraries made it, or its data cannot be compared.
    """
    path = Path(args.metrics_dir) / f"{name}.json"
    earlier = None if args.overwrite else saving.read_json(path)
    if not earlier or not earlier.get("finished") or not path.with_name(f"{name}_metrics.csv").exists():
        return False
    try:
        settings, split = dict(earlier["settings"]), earlier["partition"]["sha256"]
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path}: is not the record of a run; move it away, or --overwrite") from None
    for setting in differing_settings(args, settings):
        raise InputError(
            f"{path} was run with {setting} = {settings.get(setting)}, not {getattr(args, setting)}: "
            "use another --metrics_dir, or --overwrite"
        )
    if earlier.get("payload_version") != wire.VERSION:
        raise InputError(f"{path} is of a version that counted bytes otherwise: another --metrics_dir, or --overwrite")
    parts = args.save_clients and Path(args.save_clients) / personal_parts.INDEX
    file_of_split = split_path(args)
    for file in (file_of_split, args.save_weights, parts):
        if file and not Path(file).exists():
            raise InputError(f"{name} is finished, but {file} is not there: name the file it wrote, or --overwrite")
    if args.save_clients:
        personal_parts.check_finished(args.save_clients, args, name)
    if file_of_split and partitions.partition_file_hash(file_of_split) != split:
        raise InputError(f"{path} was run on another split than {file_of_split} holds now: rename it, or --overwrite")
    _check_same_data(args, path, earlier)
    for difference in provenance.differences(earlier.get("environment") or {}, vars(args)):
        print(f"warning: {name} is finished, but by {difference}; --overwrite runs it again", file=sys.stderr)
    return True


def _check_same_data(args, path, earlier):
    """Raise InputError if the finished run of the record `earlier`, at `path`, read other images or labels."""
    crc = (earlier.get("data") or {}).get("crc32")
    try:
        here = crc and datasets.fingerprint(args.dataset, args.data_root, args.seed, args.image_size)
    except InputError as error:
        print(f"warning: whether {path} was run on the same data cannot be told: {error}", file=sys.stderr)
        return
    if crc != here:
        raise InputError(
            f"{path} was run on other files of {args.dataset} than {args.data_root} holds now (their CRC-32 is {here}, "
            f"not {crc}): another --metrics_dir, or --overwrite"
        )
