"""The final model of a run as a file (--save_weights), and a card in Markdown beside it that tells what it is."""

import shlex
from pathlib import Path

from fedmerge import datasets, networks, provenance, saving
from fedmerge.config.options import all_options
from fedmerge.config.run_name import told_settings
from fedmerge.config.settings_files import typed
from fedmerge.errors import InputError
from fedmerge.networks.exported import onnx_of
from fedmerge.registry import specs

ONNX = ".onnx"
INPUTS = {
    ONNX: "`images`, float32 [batch, {c}, {h}, {w}], pixels between 0 and 1, which it normalises; output: `logits`",
    None: "float32 [batch, {c}, {size}, {size}], pixels between 0 and 1, minus {mean}, over {std}",
}


def check(run):
    """Raise InputError if the network of an Experiment cannot be written in the format that is asked for."""
    path = run.settings.save_weights
    if path and Path(path).suffix.lower() == ONNX:
        try:
            onnx_of(run.model.plain_copy(), run.splits, {})
        except InputError as error:
            raise InputError(f"--save_weights {path}: {error}") from None


def leave(run, final):
    """Write the model that is loaded in an Experiment, and its card; final: {name: figure} of the run."""
    path, labels = run.settings.save_weights, datasets.label_set(run.settings.dataset)
    saving.remove_leftovers(path)
    if Path(path).suffix.lower() == ONNX:
        metadata = {"run": run.name, "dataset": run.settings.dataset, "accuracy": f"{final['accuracy']:.4f}"}
        saving.write_atomic(path, onnx_of(run.model.plain_copy(), run.splits, metadata))
    else:
        networks.save_weights(path, run.model.plain_copy(), labels)
    saving.write_atomic(f"{path}.md", card(run, final))


def card(run, final):
    """Return the model's card, Markdown."""
    args, splits = run.settings, run.splits
    environment = provenance.environment(run.device, args.model_name)
    shape = dict(zip("chw", splits.test.images.shape[1:], strict=True)) | {"size": splits.image_size}
    mean, std = ([round(x, 4) for x in numbers.tolist()] for numbers in (splits.mean, splits.std))
    suffix = Path(args.save_weights).suffix.lower()
    given = INPUTS[suffix if suffix == ONNX else None].format(**shape, mean=mean, std=std)
    up, down = (final[f"bytes_{way}"] / 1e6 for way in ("up", "down"))
    method = specs("algorithm")[args.algorithm].title
    rows = {
        "network": f"{args.model_name}, {sum(p.numel() for p in run.model.plain_copy().parameters()):,} weights",
        "input": given,
        "classes": f"{splits.n_classes}, those of {args.dataset}",
        "trained by": f"{method} (`--algorithm {args.algorithm}`), {args.n_epochs} rounds, {args.n_clients} clients",
        "data": f"{args.dataset}, {int(run.histograms().sum())} images of clients, split: {run.split}",
        "test accuracy, macro F1": f"{100 * final['accuracy']:.2f} %, {100 * final['f1']:.2f} %",
        "sent": f"{up:.3f} MB up, {down:.3f} MB down, by all clients in all rounds",
        "made with": f"commit {environment.get('commit') or 'unknown'}, torch {environment['torch']}",
    }
    told = {name: getattr(args, name) for name in ("algorithm", "dataset", "seed")} | told_settings(args)
    needed = {name: getattr(args, name) for name in ("data_root", "plugin")}
    told |= {name: value for name, value in needed.items() if value != all_options()[name].default}
    command = shlex.join(["python", "fedalg.py", *typed(told, "")])
    lines = [f"| {name} | {value.replace('|', '&#124;')} |" for name, value in rows.items()]
    return "\n".join([f"# {run.name}", "", "| | |", "|---|---|", *lines, "", "```sh", command, "```", ""])
