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
import io
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fedmerge import datasets, locks, networks, partitions, saving, startup
from fedmerge.checkpoint.policy import Interrupted, Keeper
from fedmerge.checkpoint.store import Checkpoints
from fedmerge.config import split_files
from fedmerge.config.options import OPTIONS
from fedmerge.config.run_name import run_name
from fedmerge.errors import InputError, reason
from fedmerge.local_training.settings import LocalSettings
from fedmerge.local_training.trainer import Trainer
from fedmerge.randomness import key_seed
from fedmerge.registry import ALGORITHMS, LOCAL_METHODS
from fedmerge.reporting import metrics_csv, outputs, results_csv, run_record
from fedmerge.reporting.progress import Progress
from fedmerge.simulation import capacity, evaluation, personal_models, personal_parts, rounds
from fedmerge.simulation.attacks import Attack
from fedmerge.simulation.client_threads import Workers, how_many
from fedmerge.simulation.distributed import lead, serve
from fedmerge.simulation.process_group import Ranks
from fedmerge.simulation.run_state import resume
from fedmerge.simulation.sampling import cohort_size
from fedmerge.startup import NOT_FINISHED
from fedmerge.wire.downlink import Downlink

METRICS = ["train_losses", "train_accs", "val_losses", "val_accs", "test_losses", "test_accs"]
COLUMNS = ["epoch", *METRICS, *rounds.BYTES, "train_seconds", "eval_seconds", "kept_share", "clients"]


@dataclass
class Experiment:
    """Everything one run works with; `theta [dim]` is the server's model, `downlink.model` what clients get of it."""

    args: object
    name: str
    device: torch.device
    splits: datasets.Splits
    split: str  # its name
    parts: list  # each client's indices into the training data
    empty: list  # numbers of the clients that have no samples, and never take part
    model: networks.FlatModel
    algorithm: object
    trainer: Trainer
    theta: torch.Tensor
    downlink: Downlink
    workers: Workers
    spare_rows: list = field(default_factory=list)  # [dim] each, for updates; fresh pages cost more than a step
    deltas: torch.Tensor = None  # [clients, dim], all updates of a round, if the merge needs these
    cohort: object = None  # the Cohort of the round under way
    rows: list = field(default_factory=list)
    traffic: dict = field(default_factory=dict)  # client -> [rounds, bytes up, bytes down]
    collect: object = rounds.collect  # (exp, cohort, round, keeper): lets the clients train, here or in more processes
    ranks: Ranks = None  # these processes
    progress: Progress = None  # shows how far the rounds are
    judged: tuple = ()  # of the last evaluation: predictions int64 [N], and the test Images that they are of

    @property
    def cohort_size(self):
        """How many clients take part in a round."""
        return cohort_size(len(self.parts) - len(self.empty), self.args.participation)


# --------------------------------------------------------------------------------------------------------------------
# Setting up


def prepare(args, ranks=None):
    """Load the data, split it, build the model and the algorithm. Raises InputError for anything the user must mend.

    ranks: the Ranks of the run, if it has several processes.
    """
    device = pick_device(args.device, args.deterministic)
    if args.capture and device.type != "cuda":
        raise InputError("--capture replays CUDA graphs, and there is no CUDA device here: leave it out")
    if ranks and ranks.rank == 0:
        ranks.tell({"prepare": True})
    if ranks and device.type == "cuda":
        device = torch.device("cuda", ranks.local_rank % torch.cuda.device_count())  # SLURM may show each its own
    first = not ranks or ranks.rank == 0
    with contextlib.nullcontext() if first else contextlib.redirect_stderr(io.StringIO()):  # one warns of the data
        splits = datasets.load_dataset(args.dataset, args.data_root, args.seed, args.image_size, args.shift)
        exp = assemble(args, splits, partitions.split_into_clients(args, splits.train, first), device)
    if first:
        capacity.check_room(exp)
    if ranks:
        share = -(-exp.cohort_size // ranks.size)
        capacity.check_cohort(args, share, exp.model.layout.dim, f"each of {ranks.size} processes")
        exp.ranks, exp.collect = ranks, lead
        if first:
            ranks.tell({"begin": True})  # all is well so far
            ranks.use(device)
    return exp


def assemble(args, splits, parts, device):
    """Return the Experiment on data.Splits divided into `parts`, with a fresh model and algorithm on `device`."""
    model = networks.FlatModel(build_module(args, splits, device), device)
    splits = splits.to(device)
    settings = LocalSettings(
        seed=args.seed,
        epochs=args.n_client_epochs,
        batch_size=args.batch_size,
        lr=args.lr,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        lr_decay=args.lr_decay,
        clip_norm=args.clip_norm,
        augment=args.augment == "standard",
        bf16=args.precision == "bf16",
        max_steps=args.local_steps,
        optimizer=args.local_optimizer,
        bn_recalibrate=args.bn_recalibrate,
        capture=args.capture and device.type == "cuda",
    )
    method = LOCAL_METHODS[args.local]
    local = method(**{name: getattr(args, name) for name in method.options})
    algorithm = make_algorithm(args, model.layout)
    attack = None
    if args.attack:
        attack = Attack(args.attack, args.n_clients, args.attackers, args.attack_strength, args.seed)
    trainer, theta = Trainer(model, splits, parts, settings, local, attack), model.vector.clone()
    downlink = Downlink(
        algorithm.broadcast(theta),
        model.layout,
        args.n_clients,
        mode=args.downlink,
        bits=args.down_bits or args.value_bits,
        keep=args.down_sparsity,
        shared_init=args.shared_init,
        seed=args.seed,
        real=args.wire == "real",
    )
    empty = [number for number, part in enumerate(parts) if not len(part)]
    cohort = cohort_size(len(parts) - len(empty), args.participation)
    if not algorithm.means:
        capacity.check_cohort(args, cohort, model.layout.dim, f"--algorithm {args.algorithm}")
    at_once = cohort if parts else args.n_clients  # without any, all are judged
    workers = Workers(trainer, 1 if trainer.draws else how_many(args.parallel_clients, device, at_once))
    name, split = run_name(args), split_files.split_name(args)
    return Experiment(
        args, name, device, splits, split, parts, empty, model, algorithm, trainer, theta, downlink, workers
    )


def pick_device(wanted, deterministic=False):
    """Return the torch.device for --device; set torch up for it. Raises InputError if it is not there."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads such, and it costs a quarter
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        wanted = next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there[wanted]:
        raise InputError(f"--device {wanted}: torch {torch.__version__} finds no such device here")
    return torch.device(wanted)


def build_module(args, splits, device="cpu"):
    """Return the network of --model_name with its starting weights, on the CPU; the `device` is to hold it."""
    channels, size = splits.train.images.shape[1:3]
    seed = key_seed(args.seed, "init")
    module = networks.build_model(args.model_name, channels, size, splits.n_classes, args.norm, seed, device)
    if args.pretrained:
        networks.load_pretrained(module, args.model_name)
    if args.init_weights:
        networks.load_weights(module, args.init_weights, datasets.label_set(args.dataset))
    return module


def make_algorithm(args, layout):
    """Return the algorithm of the settings `args`."""
    cls = ALGORITHMS[args.algorithm]
    return cls(layout, **{name: getattr(args, name) for name in cls.options})


def prepare_judge(given):
    """Return an Experiment without clients, as of the run that left --evaluate_clients; `given` names the machine."""
    args, _ = personal_parts.load(given.evaluate_clients)
    args.pretrained = False  # the shared model comes from the folder
    machine = [option.name for option in OPTIONS["machine"]]
    vars(args).update({name: getattr(given, name) for name in ("data_root", "quiet", *machine)})
    device = pick_device(args.device, args.deterministic)
    return assemble(
        args, datasets.load_dataset(args.dataset, args.data_root, args.seed, args.image_size, args.shift), [], device
    )


# --------------------------------------------------------------------------------------------------------------------
# The round loop


def run_rounds(exp, write, keeper=None):
    """Train all rounds that are left; `write` gets the row of each, the Keeper, if given, saves now and then."""
    args = exp.args
    with Progress(exp, keeper) as exp.progress:
        done = len(exp.rows)
        for round in range(done + 1, args.n_epochs + 1):
            row = rounds.train_round(exp, round, keeper)
            if round == done + 1:
                capacity.check_what_is_held(exp)
            if round % args.eval_every == 0 or round == args.n_epochs:
                evaluation.evaluate_round(exp, row)
            write(row)
            exp.rows.append(row)
            exp.progress.after_round(row)
            if keeper:
                keeper.after_round(exp)


# --------------------------------------------------------------------------------------------------------------------
# What a run leaves behind


def main(args, ranks=None):
    """Run the experiment of the resolved settings `args`, or say that it is finished already. Raises InputError."""
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
        return print(finished)
    results_csv.read_results(args.results_file)  # so that a bad one is found before the work, not after
    keeper = Keeper(kept, args.checkpoint_every)
    with outputs.held(args, name, anew=not goes_on()), keeper.listening():
        exp = prepare(args, ranks)
        with outputs.alone(metrics / f".{name}.lock", kept.lock):
            if not goes_on() and run_record.already_finished(args, name):  # by another process, meanwhile
                return print(finished)
            if fresh:
                kept.remove()
            settings = resume(exp, kept)
            if settings is not None:
                outputs.check(args, name, settings, trained=len(exp.rows) == args.n_epochs)
            outputs.check_last_step(args, name)
            if settings is not None:
                print(f"{name}: goes on after round {len(exp.rows)} of {args.n_epochs}", file=sys.stderr)
            if not args.quiet:
                print(about(exp), file=sys.stderr)
            for path in (kept.newest, metrics / f"{name}.json", metrics / f"{name}_metrics.csv"):
                saving.remove_leftovers(path)
            try:
                run(exp, metrics, keeper)
            except Interrupted:
                raise
            except Exception as error:  # whatever it is, nobody shall take the run for one that only goes on
                run_record.note_failure(metrics / f"{name}.json", error)
                raise


def about(exp):
    """Return in a line what a run works with, where a wrong file or a default that was not meant can be seen."""
    args, layout = exp.args, exp.model.layout
    words = partitions.described(run_record.histograms(exp), len(exp.splits.train))
    model = f"{args.model_name}, {layout.n_trainable:,} weights, norm {args.norm}, augmentation {args.augment}"
    return f"split {exp.split}: {words}; {model}"


def run(exp, metrics, keeper):
    """Train and evaluate `exp`, and leave everything a finished run leaves; it counts as finished at the very end."""
    args, name = exp.args, exp.name
    saving.write_json(metrics / f"{name}.json", run_record.record(exp, finished=False))
    with metrics_csv.MetricsCSV(metrics / f"{name}_metrics.csv", COLUMNS, exp.rows) as csv:
        run_rounds(exp, csv.write, keeper)
    if not exp.judged:  # it went on after the last round
        *_, exp.judged = evaluation.evaluate(exp, exp.splits.test)
    final = run_record.final_figures(exp)
    if args.save_weights or args.save_clients:  # once one of them is begun, the run must be able to go on
        keeper.save(exp)
    if args.save_weights:
        exp.model.load(evaluation.served(exp))
        saving.remove_leftovers(args.save_weights)
        networks.save_weights(args.save_weights, exp.model.module, datasets.label_set(args.dataset))
    figures = draw(args, name)
    if args.save_clients:
        try:
            final |= personal_models.save_clients(exp, keeper)
        except FloatingPointError:  # a client that diverges as it trains once more is no fault of the run
            leave_results(exp, metrics, final)
            keeper.checkpoints.remove()
            raise
    leave_results(exp, metrics, final)
    keeper.checkpoints.remove()
    said = (
        f"{name}: test accuracy {final['accuracy']:.4f}, F1 {final['f1']:.4f}, "
        f"{final['bytes_up'] / 1e6:.2f} MB up, {final['bytes_down'] / 1e6:.2f} MB down, "
        f"{final['train_seconds']:.1f} s of training; {metrics / name}_metrics.csv, {figures}"
    )
    with contextlib.suppress(OSError):  # all is there, whether or not somebody reads of it
        print(said, flush=True)


def leave_results(exp, metrics, final):
    """Write the row of results.csv, then the record, with which the run counts as finished."""
    record = run_record.record(exp, finished=True, final=final)
    results_csv.add_results(exp.args.results_file, [results_csv.result_row(record)])
    saving.write_json(metrics / f"{exp.name}.json", record)


def draw(args, name):
    """Draw the run's own figures; return where they are. A run is none the worse if that fails."""
    import plotting

    try:
        return plotting.plot_run(Path(args.metrics_dir), name, Path(args.plots_dir))
    except Exception as error:  # of whatever kind: there are years of others' code in it
        print(f"warning: {name}: its figures could not be drawn ({reason(error)})", file=sys.stderr)
        return "no figures"


def program(args):
    """Run `main`, or train for it in another process; return the exit status; say in one line what went wrong."""
    ranks, here = None, "fedalg.py"
    try:
        ranks = Ranks.join()
        if ranks and ranks.rank:
            here += f": rank {ranks.rank}"
            status = serve(ranks, lambda: prepare(args, ranks))
        else:
            main(args, ranks)
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
    if ranks and ranks.rank == 0 and ranks.resting:
        with contextlib.suppress(OSError):
            ranks.tell({"status": status})
    if ranks:
        ranks.leave()
    return status


if __name__ == "__main__":
    startup.leave(program(ARGS))
