# PYTHON_ARGCOMPLETE_OK
"""Federated training: `python fedalg.py --algorithm las --dataset DIGITS`; `--help` lists all flags.

Each round the server samples clients, sends them its model, lets each train, merges what they send, and is evaluated.
A round is one row of metrics/<run>_metrics.csv; a finished run is one row of results.csv.
"""

if __name__ == "__main__":  # answer --help, and refuse a bad command line, before torch's seconds of importing
    from fedmerge import startup

    startup.mend_streams()
    startup.end_at_signals()

    from fedmerge.config.parser import parse_args

    ARGS = parse_args()

import contextlib
import os
import sys
import time
from pathlib import Path

import agg_utils
from fedmerge import locks, partitions, saving, startup
from fedmerge.checkpoint.policy import CheckpointPolicy, Interrupted
from fedmerge.checkpoint.store import Checkpoints
from fedmerge.config import settings_files
from fedmerge.config.run_name import acting, run_name, settings_of
from fedmerge.errors import InputError, reason
from fedmerge.reporting import final_model, metrics_csv, outputs, personal_models, results_csv, run_record, tracking
from fedmerge.reporting.progress import Progress, say
from fedmerge.simulation import capacity, personal_parts, state_checks
from fedmerge.simulation.distributed import worker_loop
from fedmerge.simulation.experiment import prepare, prepare_judge
from fedmerge.simulation.process_group import ProcessGroup
from fedmerge.simulation.run_state import RunState, resume
from fedmerge.simulation.server import BYTES
from fedmerge.startup import NOT_FINISHED

METRICS = ["train_losses", "train_accs", "val_losses", "val_accs", "test_losses", "test_accs"]
COLUMNS = ["epoch", *METRICS, *BYTES, "train_seconds", "eval_seconds", "kept_share", "clients"]


def run_rounds(run, callbacks=(), saver=None):
    """Train all rounds of an Experiment that are left.

    callbacks: each is called with a round's row {column: figure}, when that is in run.history. saver: a
    CheckpointPolicy, which saves the run now and then, and may end it.
    """
    settings = run.settings
    for round in range(run.history.n_done + 1, settings.n_epochs + 1):
        row = train_round(run, round, saver)
        if round % settings.eval_every == 0 or round == settings.n_epochs:
            row |= evaluate(run, round)
        run.history.add(row)
        for callback in callbacks:
            callback(dict(row))  # theirs to change
        if saver:
            saver.after_round()


def train_round(run, round, saver=None):
    """Train a round of an Experiment; return the columns {column: figure} of its row that tell of it."""
    server = run.server
    cohort = server.sample(round)  # who takes part, and who will drop out
    run.backend.train(cohort, saver)  # in threads of this process, or in several
    started = time.perf_counter() - cohort.seconds
    row = {"epoch": round, **agg_utils.merge(server, run.clients, cohort)}
    server.publish(round)  # what clients download in the next round
    return row | server.count_bytes(cohort) | {"train_seconds": time.perf_counter() - started}


def evaluate(run, round):
    """Return the columns of what the server's model reaches after a round. Raises FloatingPointError."""
    try:
        columns, run.history.judged = run.evaluator.columns(run.server, run.clients.parts)
    except FloatingPointError as error:
        raise FloatingPointError(f"round {round}: {error}") from None
    return columns


# --------------------------------------------------------------------------------------------------------------------
# What a run leaves behind


def main(args, group=None, callbacks=(), say=say):
    """Run the experiment of the resolved settings `args`, or say that it is finished already. Raises InputError.

    group: the ProcessGroup of the run, if it has several processes; callbacks: called with the row of each round; say:
    called with the line at the end. Returns the Experiment, None where nothing was run.
    """
    if args.evaluate_clients:
        personal_parts.check_links(args.evaluate_clients)
        return personal_models.judge_clients(prepare_judge(args), args.evaluate_clients)
    name, metrics = run_name(args), Path(args.metrics_dir)
    kept = Checkpoints(args.checkpoint_dir, name)
    outputs.check_links(args, name, kept)
    finished = f"{name}: already finished, see {metrics / name}_metrics.csv (run again with --overwrite)"
    fresh = args.fresh and not int(os.environ.get("SLURM_RESTART_COUNT", 0))  # once, not whenever a job is requeued

    def goes_on():
        return kept.exist() and not fresh

    if not goes_on() and run_record.already_finished(args, name):
        return say(finished)
    results_csv.read_results(args.results_file)  # so that a bad one is found before the work, not after
    saver = CheckpointPolicy(kept, args.checkpoint_every)
    with outputs.held(args, name, anew=not goes_on()), saver.stop.listening():
        run = prepare(args, group)
        saver.run = RunState(run)
        with outputs.alone(metrics / f".{name}.lock", kept.lock):
            if not goes_on() and run_record.already_finished(args, name):  # by another process, meanwhile
                return say(finished)
            if fresh:
                kept.remove()
            begin(run, kept)
            try:
                with tracking.Tracking(run) as track:
                    track.finish(finish(run, saver, [*callbacks, track.after_round], say))
            except Interrupted:
                raise
            except Exception as error:  # whatever it is, nobody shall take the run for one that only goes on
                run_record.note_failure(metrics / f"{name}.json", error)
                raise
            return run


def begin(run, kept):
    """Go on from the run's Checkpoints, if there are any; check what it will write, and say what it works with."""
    args, name, metrics = run.settings, run.name, Path(run.settings.metrics_dir)
    settings = resume(run, kept)
    if settings is not None:
        outputs.check(args, name, settings, trained=run.history.n_done == args.n_epochs)
    outputs.check_last_step(args, name)
    final_model.check(run)
    if args.save_config:
        settings_files.write_toml(args.save_config, name, acting(settings_of(args)))
    if settings is not None:
        print(f"{name}: goes on after round {run.history.n_done} of {args.n_epochs}", file=sys.stderr)
    if not args.quiet:
        print(about(run), file=sys.stderr)
    for path in (kept.newest, metrics / f"{name}.json", metrics / f"{name}_metrics.csv"):
        saving.remove_leftovers(path)


def about(run):
    """Return in a line what a run works with, where a wrong file or a default that was not meant can be seen."""
    args, n_weights = run.settings, run.server.layout.n_trainable
    words = partitions.described(run.histograms(), len(run.splits.train))
    model = f"{args.model_name}, {n_weights:,} weights, norm {args.norm}, augmentation {args.augment}"
    return f"split {run.split}: {words}; {model}"


def finish(run, saver, callbacks=(), say=say):
    """Train and evaluate, and leave everything a finished run leaves; it counts as finished at the very end.

    Returns {name: figure} of it.
    """
    args, name, metrics = run.settings, run.name, Path(run.settings.metrics_dir)
    saving.write_json(metrics / f"{name}.json", run_record.record(run, finished=False))
    with (
        metrics_csv.MetricsCSV(metrics / f"{name}_metrics.csv", COLUMNS, run.history.rows) as csv,
        Progress(run) as bar,
    ):
        run.clients.watchers = [saver.stop, bar]
        run_rounds(run, [room_checker(run), csv.write, bar.after_round, *callbacks], saver)
        run.clients.watchers = []
    if not run.history.judged:  # it went on after the last round
        *_, run.history.judged = run.evaluator.evaluate(run.server, run.clients.parts, run.splits.test)
    final = run_record.final_figures(run)
    if args.save_weights or args.save_clients:  # once one of them is begun, the run must be able to go on
        saver.save()
    if args.save_weights:
        run.model.load(run.server.served())
        final_model.leave(run, final)
    figures = draw(args, name)
    if args.save_clients:
        try:
            final |= personal_models.save_clients(run, saver, say)
        except FloatingPointError:  # a client that diverges as it trains once more is no fault of the run
            leave_results(run, final)
            saver.checkpoints.remove()
            raise
    leave_results(run, final)
    saver.checkpoints.remove()
    said = (
        f"{name}: test accuracy {final['accuracy']:.4f}, F1 {final['f1']:.4f}, "
        f"{final['bytes_up'] / 1e6:.2f} MB up, {final['bytes_down'] / 1e6:.2f} MB down, "
        f"{final['train_seconds']:.1f} s of training; {metrics / name}_metrics.csv, {figures}"
    )
    say(said)
    return final


def room_checker(run):
    """Return a callback that looks, after this process's first round, at what is kept: whether a checkpoint can hold
    it, and whether there is room for what clients keep.
    """
    first = run.history.n_done + 1

    def check(row):
        if row["epoch"] == first:
            state_checks.check_kept(run.clients, run.server.layout, run.server.theta, run.settings.n_clients)
            capacity.check_what_is_kept(run.server, run.clients, run.name)

    return check


def leave_results(run, final):
    """Write the row of results.csv, then the record, with which the run counts as finished."""
    record = run_record.record(run, finished=True, final=final)
    results_csv.add_results(run.settings.results_file, [results_csv.result_row(record)])
    saving.write_json(Path(run.settings.metrics_dir) / f"{run.name}.json", record)


def draw(args, name):
    """Draw the run's own figures; return where they are. A run is none the worse if that fails."""
    from fedmerge.reporting import run_figures  # with matplotlib, which outputs.check_last_step has tried

    try:
        return run_figures.plot_run(Path(args.metrics_dir), name, Path(args.plots_dir))
    except Exception as error:  # of whatever kind: there are years of others' code in it
        print(f"warning: {name}: its figures could not be drawn ({reason(error)})", file=sys.stderr)
        return "no figures"


def program(args):
    """Run `main`, or train for it in another process; return the exit status; say in one line what went wrong."""
    group, here = None, "fedalg.py"
    try:
        group = ProcessGroup.join()
        if group and group.rank:
            here += f": rank {group.rank}"
            status = worker_loop(group, lambda: prepare(args, group))
        else:
            main(args, group)
            status = 0
    except InputError as error:
        print(f"{here}: error: {error}", file=sys.stderr)
        status = outputs.ELSEWHERE if isinstance(error, locks.Elsewhere) else 2
    except (FloatingPointError, OSError) as error:
        print(f"{here}: stopped: {error}", file=sys.stderr)
        status = 1
    except Interrupted as error:
        print(f"{here}: {error}", file=sys.stderr)
        status = NOT_FINISHED
    if group and group.rank == 0 and group.resting:
        with contextlib.suppress(OSError):
            group.tell({"status": status})
    if group:
        group.leave()
    return status


if __name__ == "__main__":
    startup.leave(program(ARGS))
