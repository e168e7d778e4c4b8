"""Use from Python: `run` does what `python fedalg.py` does, and returns what is to be known of the run.

    import fedmerge

    run = fedmerge.run(algorithm="las", dataset="DIGITS", rounds=20, lr=0.05)
    run.history.plot("epoch", "test_accs")

It is the one module of the package that imports a door of the program, fedalg.py.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fedmerge.config.parser import typed_settings
from fedmerge.config.run_name import run_name
from fedmerge.errors import InputError

if TYPE_CHECKING:
    import pandas
    import torch

ROOT = str(Path(__file__).resolve().parent.parent)


class Run:
    """A finished run: `name`, `settings`, and what it left."""

    def __init__(self, settings: argparse.Namespace, experiment=None):
        """settings: the resolved Namespace; experiment: the simulation.Experiment, if it ran just now."""
        self.settings, self.name, self._experiment = settings, run_name(settings), experiment

    def __repr__(self):
        return f"<Run {self.name}: test accuracy {self.record['final']['accuracy']:.4f}>"

    @property
    def history(self) -> "pandas.DataFrame":
        """A pandas.DataFrame with a row a round: what <run>_metrics.csv holds."""
        import pandas as pd

        return pd.read_csv(Path(self.settings.metrics_dir) / f"{self.name}_metrics.csv")

    @property
    def record(self) -> dict:
        """What <run>.json holds, a dict: final figures, settings, versions, bytes of each client, the split."""
        from fedmerge.saving import read_json

        return read_json(Path(self.settings.metrics_dir) / f"{self.name}.json")

    def model(self) -> "torch.nn.Module":
        """Return the network, a torch.nn.Module with the final weights, in evaluation mode on the CPU.

        Raises InputError for a run that an earlier process finished without save_weights.
        """
        import copy

        from fedmerge import datasets, networks
        from fedmerge.simulation.experiment import build_module, load_splits

        run = self._experiment
        if run is not None:
            run.model.load(run.server.served())
            return copy.deepcopy(run.model.module).cpu().eval()
        if self.settings.save_weights is None:
            raise InputError(f"{self.name} was finished before and left no weights: overwrite=True runs it again")
        module = build_module(self.settings, load_splits(self.settings))
        networks.load_weights(module, self.settings.save_weights, datasets.label_set(self.settings.dataset))
        return module.eval()


def run(**settings) -> Run:
    """Run an experiment, or find that it is finished already; return its Run.

    settings: the flags of fedalg.py by their names, with or without aliases: `run(algorithm="las", keep=0.1)`. Unless
    told otherwise by quiet=False, a bar shows the rounds, also in a notebook. Raises InputError for what the command
    line refuses, FloatingPointError for a run that diverges, and checkpoint.policy.Interrupted when it was interrupted:
    the same call goes on.
    """
    args = typed_settings({"quiet": True, **settings})
    if args.evaluate_clients:
        raise InputError("evaluate_clients trains nothing: call fedalg.py for it")
    if ROOT not in sys.path:
        sys.path.append(ROOT)
    import fedalg
    from fedmerge.reporting.progress import RoundsBar

    with RoundsBar(args, shown=settings.get("quiet") is None) as bar:
        experiment = fedalg.main(args, callbacks=[bar.after_round])
        if experiment is None:
            bar.already_finished()
        return Run(args, experiment)
