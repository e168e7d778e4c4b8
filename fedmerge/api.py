"""Use from Python: `run` does what `python fedalg.py` does, and returns what is to be known of the run.

    import fedmerge

    run = fedmerge.run(algorithm="las", dataset="DIGITS", rounds=20, lr=0.05)
    run.history.plot("epoch", "test_accs")

It is the one module of the package that imports a door of the program, fedalg.py.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fedmerge.config.parser import typed_settings
from fedmerge.config.run_name import run_name
from fedmerge.errors import InputError
from fedmerge.registry import plugins, plugins_held, use_plugins

if TYPE_CHECKING:
    import pandas
    import torch

ROOT = str(Path(__file__).resolve().parent.parent)


class Run:
    """A finished run: `name`, `settings`, and what it left."""

    def __init__(self, settings: argparse.Namespace, module: "torch.nn.Module | None" = None):
        """settings: the resolved Namespace; module: the final network on the CPU, if it was trained just now."""
        self.settings, self.name, self._module = settings, run_name(settings), module
        self._folder, self._plugins = Path(settings.metrics_dir).absolute(), plugins()

    def __repr__(self):
        final = (self.record or {}).get("final") or {}
        said = f": test accuracy {final['accuracy']:.4f}" if "accuracy" in final else ""
        return f"<Run {self.name} in {self._folder}{said}>"

    @property
    def history(self) -> "pandas.DataFrame":
        """A pandas.DataFrame with a row a round: what <run>_metrics.csv holds."""
        import pandas as pd

        return pd.read_csv(self._folder / f"{self.name}_metrics.csv")

    @property
    def record(self) -> dict:
        """What <run>.json holds, a dict: final figures, settings, versions, bytes of each client, the split."""
        from fedmerge.saving import read_json

        return read_json(self._folder / f"{self.name}.json")

    def model(self) -> "torch.nn.Module":
        """Return the network, a torch.nn.Module with the final weights, in evaluation mode on the CPU.

        Raises InputError for a run that an earlier process finished without save_weights.
        """
        import copy

        from fedmerge import datasets, networks
        from fedmerge.simulation.experiment import load_splits, starting_module

        if self._module is not None:
            return copy.deepcopy(self._module)
        if self.settings.save_weights is None:
            raise InputError(f"{self.name} was finished before and left no weights: overwrite=True runs it again")
        with plugins_held():
            use_plugins(self._plugins)
            module = starting_module(self.settings, load_splits(self.settings))
        networks.load_weights(module, self.settings.save_weights, datasets.label_set(self.settings.dataset))
        return module.eval()


def run(callbacks: Sequence[Callable] | Callable | None = (), **settings) -> Run:
    """Run an experiment, or find that it is finished already; return its Run.

    settings: the flags of fedalg.py by their names, with or without aliases: `run(algorithm="las", keep=0.1)`; of
    plugin, one or a list. Unless told otherwise by quiet=False, a bar shows the rounds, also in a notebook; quiet=True
    prints nothing, but for warnings, and that a run goes on, on standard error. callbacks: a function or several; each
    is called after a round that is trained with its row of the history, a dict. Raises InputError for what the command
    line refuses, FloatingPointError for a run that diverges, and checkpoint.policy.Interrupted when it was interrupted:
    the same call goes on.
    """
    callbacks = _functions(callbacks)
    with plugins_held():
        args = typed_settings({"quiet": True, **settings})
        if args.evaluate_clients:
            raise InputError("evaluate_clients trains nothing: call fedalg.py for it")
        if ROOT not in sys.path:
            sys.path.append(ROOT)
        import fedalg
        from fedmerge.reporting.progress import RoundsBar

        silent = {"say": lambda line: None} if settings.get("quiet") else {}
        with as_in_a_process_of_its_own(), RoundsBar(args, shown=settings.get("quiet") is None) as bar:
            experiment = fedalg.main(args, callbacks=[bar.after_round, *callbacks], **silent)
            if experiment is None:
                bar.already_finished()
                return Run(args)
            experiment.model.load(experiment.server.served())
            return Run(args, experiment.model.plain_copy())


def _functions(callbacks):
    """Return the callbacks as a list. Raises InputError for what cannot be called."""
    if callbacks is None or callable(callbacks):
        return [] if callbacks is None else [callbacks]
    if not isinstance(callbacks, Iterable):
        raise InputError(f"callbacks: {callbacks!r} is no function, nor a list of them")
    found = list(callbacks)
    for one in found:
        if not callable(one):
            raise InputError(f"callbacks: {one!r} is no function")
    return found


@contextmanager
def as_in_a_process_of_its_own():
    """While this lasts, torch computes gradients, and in what is float32 by default; afterwards as it did before."""
    import torch

    deterministic, dtype = torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.set_default_dtype(dtype)
