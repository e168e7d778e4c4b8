"""What runs tell to a tracker while they go on: --track tensorboard, wandb, mlflow or trackio, in --track_dir.

Every column of the CSV, a step a round; the settings at the start, the figures at the end. A run that goes on does so
in its record. The packages are optional, and imported only here; whatever goes wrong with them ends no run.
"""

import hashlib
import math
import os
import sys
from pathlib import Path

from fedmerge.config.run_name import settings_of
from fedmerge.errors import reason

PROJECT = "fedmerge"


def numbers(values):
    """Return what of {name: value} are finite numbers."""
    return {n: float(v) for n, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}


class TensorBoard:
    """A folder of events, DIR/<run>: `tensorboard --logdir DIR`."""

    def __init__(self, folder, name, settings, n_done):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / name), purge_step=n_done + 1 if n_done else 0)  # all that is there
        self.settings, self.n_done = settings, n_done
        if not n_done:
            lines = [f"| {key} | {value} |" for key, value in settings.items()]
            self.writer.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *lines]), 0)

    def log(self, row, step):
        for name, value in row.items():
            self.writer.add_scalar(name, value, step)

    def close(self, final):
        for name, value in final.items():
            self.writer.add_scalar(f"final/{name}", value, 0)
        self.writer.close()


class WandB:
    """A run of the project fedmerge; without an account, with WANDB_MODE=offline."""

    def __init__(self, folder, name, settings, n_done):
        import wandb

        number = hashlib.sha256(name.encode()).hexdigest()[:16]
        self.run = wandb.init(
            project=PROJECT, id=number, name=name[:128], dir=str(folder), config=settings, resume="allow"
        )

    def log(self, row, step):
        self.run.log(row, step=step)

    def close(self, final):
        self.run.summary.update({f"final/{name}": value for name, value in final.items()})
        self.run.finish(exit_code=int(not final))


class MLflow:
    """A run of the experiment fedmerge, in mlflow.db in the folder, or where MLFLOW_TRACKING_URI says."""

    def __init__(self, folder, name, settings, n_done):
        from mlflow import MlflowClient

        where = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve() / 'mlflow.db'}"
        self.client = MlflowClient(tracking_uri=where)
        experiment = self.client.get_experiment_by_name(PROJECT)
        number = experiment.experiment_id if experiment else self.client.create_experiment(PROJECT)
        key = hashlib.sha256(name.encode()).hexdigest()
        known = self.client.search_runs([number], filter_string=f"tags.fedmerge_run = '{key}'")
        if known:
            self.id = known[0].info.run_id
            self.client.update_run(self.id, status="RUNNING")
        else:
            self.id = self.client.create_run(number, run_name=name, tags={"fedmerge_run": key}).info.run_id
            for setting, value in settings.items():
                self.client.log_param(self.id, setting, value)

    def log(self, row, step):
        for name, value in row.items():
            self.client.log_metric(self.id, name, value, step=step)

    def close(self, final):
        for name, value in final.items():
            self.client.log_metric(self.id, f"final/{name}", value)
        self.client.set_terminated(self.id, "FINISHED" if final else "KILLED")


class Trackio:
    """A run of the project fedmerge, in the folder: `TRACKIO_DIR=DIR trackio show`."""

    def __init__(self, folder, name, settings, n_done):
        os.environ.setdefault("TRACKIO_DIR", str(folder.resolve()))
        import trackio

        self.trackio = trackio
        trackio.init(project=PROJECT, name=name, config=settings, resume="allow")

    def log(self, row, step):
        self.trackio.log(row, step=step)

    def close(self, final):
        if final:
            self.trackio.log({f"final/{name}": value for name, value in final.items()})
        self.trackio.finish()


TRACKERS = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow, "trackio": Trackio}


class Tracking:
    """Tells the tracker of an Experiment, if it has one, of each round, until that fails once."""

    def __init__(self, run):
        settings = run.settings
        self.kind, self.final, self.tracker = settings.track, {}, None
        if self.kind:
            plain = {name: value for name, value in settings_of(settings).items() if value is not None}
            folder, n_done = Path(settings.track_dir), run.history.n_done
            self.tracker = self._try(lambda: self._opened(folder, run.name, plain, n_done))

    def _opened(self, folder, name, settings, n_done):
        folder.mkdir(parents=True, exist_ok=True)
        return TRACKERS[self.kind](folder, name, settings, n_done)

    def _try(self, tell):
        """Return what `tell` returns; warn, and tell no more, if it fails, however it does."""
        try:
            return tell()
        except Exception as error:  # of whatever kind: there are years of others' code, and a network, behind it
            print(
                f"warning: --track {self.kind} failed, and is left out from here on ({reason(error)})", file=sys.stderr
            )
            self.tracker = None

    def after_round(self, row):
        """Tell of a round; row: {column: figure} of its CSV."""
        if self.tracker is not None:
            figures = numbers(row)
            self._try(lambda: self.tracker.log(figures, row["epoch"]))

    def finish(self, final):
        """Remember the figures of a finished run, with which its record is closed."""
        self.final = numbers(final)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.tracker is not None:
            self._try(lambda: self.tracker.close(self.final))
