"""Settings searched by Optuna, trial by trial: what a process of tune.py --trials does.

Trials are kept in an SQLite file, so that several processes, as tasks of an array job are, share them, and the same
command goes on with what is missing.
"""

import json
import math
import sys
import warnings

from fedmerge.checkpoint.policy import Interrupted
from fedmerge.errors import InputError
from fedmerge.reporting.run_status import parsed
from fedmerge.tuning.choice import Point
from fedmerge.tuning.grid import Range

FILE, NAME = "trials.db", "tune"
HEARTBEAT = 60  # seconds; a trial of which nothing is heard three times as long is tried again
FIRST = 5  # trials that are not pruned


def check_installed():
    """Raise InputError unless Optuna can be imported."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise InputError("--trials needs Optuna: pip install 'optuna>=5,<6'") from None


class Search:
    """Trials of the Points of a tuning.study.Study of one template, whose groups may be Ranges."""

    def __init__(self, study, n_trials, train):
        """train: a function (settings, callbacks=, say=) that runs one, as fedalg.main does."""
        self.study, self.n_trials, self.train = study, n_trials, train
        (self.template,) = study.templates
        study.points = [[]]

    def _open(self):
        """Return the optuna.Study. Raises InputError if the file holds trials of other flags."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of heartbeats
        self.study.out.mkdir(parents=True, exist_ok=True)
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{(self.study.out / FILE).absolute()}",
            engine_kwargs={"connect_args": {"timeout": 60}},
            heartbeat_interval=HEARTBEAT,
            grace_period=3 * HEARTBEAT,
            heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
        )
        opened = optuna.create_study(
            storage=storage,
            study_name=NAME,
            direction="maximize",
            load_if_exists=True,
            sampler=optuna.samplers.TPESampler(seed=None if storage.get_all_studies() else self.study.seeds[0]),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=FIRST),
        )
        what = json.dumps([self.template.parts, self.study.seeds, self.study.by], default=vars)
        if opened.user_attrs.setdefault("of", what) != what:
            raise InputError(f"{self.study.out / FILE}: holds trials of other flags, ranges or seeds: another --out")
        opened.set_user_attr("of", what)
        return opened

    def run(self):
        """Try until there are so many trials, those of other processes, too, which may still go on then.

        Raises Interrupted: the same command goes on with the trial at hand.
        """
        import optuna

        opened, state = self._open(), optuna.trial.TrialState
        counted = state.COMPLETE, state.PRUNED, state.RUNNING
        while True:
            optuna.storages.fail_stale_trials(opened)  # of processes that are no more
            if len(opened.get_trials(deepcopy=False, states=counted)) >= self.n_trials:
                return
            opened.optimize(lambda trial: self._objective(opened, trial), n_trials=1, callbacks=[self._say])

    def _objective(self, opened, trial):
        import optuna

        values = {group.name: _suggest(trial, group) for group in self.template.groups}
        trial.set_user_attr("values", values)
        point = Point(values, self.template.words(list(values.values())))
        for seed in self.study.seeds:
            try:
                self._train(point, seed, trial if seed == self.study.seeds[0] else None)
            except FloatingPointError as error:
                trial.set_user_attr("failed", {**trial.user_attrs.get("failed", {}), str(seed): str(error)})
                return 0.0  # the worst accuracy, so that the next trials are elsewhere
            except Interrupted:
                opened.enqueue_trial(trial.params)
                raise
            except Pruned as error:
                raise optuna.TrialPruned(str(error)) from None
        self._read(point)
        return point.mean

    def _train(self, point, seed, trial):
        """Train a run, or find that it is finished; the trial, if given, hears its validation accuracies."""
        args = parsed(self.study.run_of(point, seed))
        args.quiet = True
        self.train(args, callbacks=[listener(trial, args.n_epochs)], say=lambda line: None)

    def _read(self, point):
        self.study.points = [[point]]
        missing = self.study.collect()
        if missing:
            raise InputError(missing[0])

    @staticmethod
    def _say(opened, trial):
        values = ", ".join(f"{name}={value}" for name, value in trial.user_attrs.get("values", {}).items())
        reached = "behind others, ended early" if trial.state.name == "PRUNED" else f"{100 * (trial.value or 0):.2f} %"
        reached = "; ".join(trial.user_attrs.get("failed", {}).values()) or reached
        print(f"trial {trial.number + 1}: {values}: {reached}", flush=True)

    def collect(self):
        """Put the Points of all trials that ended into the Study, the same ones once. Returns how many were pruned."""
        import optuna

        opened, points = self._open(), {}
        for trial in opened.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)):
            values = trial.user_attrs["values"]
            point = points.setdefault(json.dumps(values), Point(values, self.template.words(list(values.values()))))
            point.failed = {int(seed): why for seed, why in trial.user_attrs.get("failed", {}).items()}
        ended = list(points.values())
        for point in ended:
            if not point.failed:
                self._read(point)
        self.study.points = [ended]
        return len(opened.get_trials(deepcopy=False, states=(optuna.trial.TrialState.PRUNED,)))


class Pruned(Exception):
    """A run that is not worth going on with."""


def listener(trial, n_rounds):
    """Return what hears the rows of a run of so many rounds, and raises Pruned where the optuna.Trial is not worth it.

    trial: None where only another run of it is heard.
    """

    def hear(row):
        if trial is None or math.isnan(row.get("val_accs", math.nan)):
            return
        trial.report(row["val_accs"], row["epoch"])
        if row["epoch"] < n_rounds and trial.should_prune():
            raise Pruned(f"after round {row['epoch']}: behind the median of the trials before it")

    return hear


def _suggest(trial, group):
    """Return the value of a flag, as typed, that a trial tries."""
    if not isinstance(group, Range):
        return trial.suggest_categorical(group.name, list(group.values))
    if group.whole:
        return str(trial.suggest_int(group.name, int(group.low), int(group.high), log=group.log))
    value = trial.suggest_float(group.name, group.low, group.high, log=group.log)
    return f"{min(max(float(f'{value:.3g}'), group.low), group.high):.6g}"  # short, since runs are named so


def warn_of_pruned(n):
    """Say on standard error that some trials were not tried to their ends."""
    if n:
        print(f"ended early, behind the median of others at the same round: {n} of the trials", file=sys.stderr)
