"""Federated training: `python fedalg.py --algorithm las --dataset DIGITS`; `--help` lists all flags.

Each round the server samples clients, sends them its model, lets each train, merges what they send, and is evaluated.
A round is one row of metrics/<run>_metrics.csv; a finished run is one row of results.csv.
"""

if __name__ == "__main__":  # answer --help, and refuse a bad command line, before torch's seconds of importing
    from utils import parse_args

    ARGS = parse_args()

import contextlib
import io
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

import data
import evaluation
import models
import partition_files
import partitions
import personal
import records
import results
import rounds
import utils
from agg_utils import ALGORITHMS, LaSFL
from attacks import Attack
from checkpoints import NOT_FINISHED, Checkpoints, Interrupted, Keeper, resume
from downlink import Downlink
from local_methods import LOCAL_METHODS
from local_training import LocalSettings, Trainer
from ranks import Ranks, lead, serve
from utils import InputError
from workers import Workers, how_many

METRICS = ["train_losses", "train_accs", "val_losses", "val_accs", "test_losses", "test_accs"]
COLUMNS = ["epoch", *METRICS, *rounds.BYTES, "train_seconds", "eval_seconds", "kept_share", "clients"]


@dataclass
class Experiment:
    """Everything one run works with; `theta [dim]` is the server's model, `downlink.model` what clients get of it."""

    args: object
    name: str
    device: torch.device
    splits: data.Splits
    split: str  # its name
    parts: list  # each client's indices into the training data
    empty: list  # numbers of the clients that have no samples, and never take part
    model: models.FlatModel
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
    judged: tuple = ()  # of the last evaluation: predictions int64 [N], and the test Images that they are of


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
        splits = data.load_dataset(args.dataset, args.data_root, args.seed, args.image_size, args.shift)
        exp = assemble(args, splits, partitions.split_into_clients(args, splits.train, first), device)
    if ranks:
        cohort = rounds.cohort_size(len(exp.parts) - len(exp.empty), args.participation)
        check_memory(args, -(-cohort // ranks.size), exp.model.layout.dim, f"each of {ranks.size} processes")
        exp.ranks, exp.collect = ranks, lead
        if first:
            ranks.tell({"begin": True})  # all is well so far
            ranks.use(device)
    return exp


def assemble(args, splits, parts, device):
    """Return the Experiment on data.Splits divided into `parts`, with a fresh model and algorithm on `device`."""
    model = models.FlatModel(build_module(args, splits), device)
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
    cohort = rounds.cohort_size(len(parts) - len(empty), args.participation)
    if not algorithm.means:
        check_memory(args, cohort, model.layout.dim, f"--algorithm {args.algorithm}")
    workers = Workers(trainer, how_many(args.parallel_clients, device, cohort))
    name, split = utils.run_name(args), partition_files.split_name(args)
    return Experiment(
        args, name, device, splits, split, parts, empty, model, algorithm, trainer, theta, downlink, workers
    )


def check_memory(args, n, dim, who):
    """Raise InputError if n updates [dim], which `who` needs at once, take more than --max_cohort_memory."""
    size = n * dim * 4 / 2**30
    if size > args.max_cohort_memory:
        raise InputError(
            f"{who} needs {n} updates of a round at once, {size:.2f} GiB: raise --max_cohort_memory "
            f"{args.max_cohort_memory:g}, or lower --participation"
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


def build_module(args, splits):
    """Return the network of --model_name with its starting weights."""
    channels, size = splits.train.images.shape[1:3]
    seed = utils.key_seed(args.seed, "init")
    module = models.build_model(args.model_name, channels, size, splits.n_classes, args.norm, seed)
    if args.pretrained:
        models.load_pretrained(module, args.model_name)
    if args.init_weights:
        models.load_weights(module, args.init_weights, data.label_set(args.dataset))
    return module


# --------------------------------------------------------------------------------------------------------------------
# The round loop


def run_rounds(exp, write, keeper=None):
    """Train all rounds that are left; `write` gets the row of each, the Keeper, if given, saves now and then."""
    args = exp.args
    on_terminal = sys.stderr.isatty() and not args.quiet
    done, total = len(exp.rows), args.n_epochs
    left = range(done + 1, total + 1)
    bar = tqdm(left, desc=exp.name, unit="round", initial=done, total=total, disable=not on_terminal)
    for round in bar:
        row = rounds.train_round(exp, round, keeper)
        if round % args.eval_every == 0 or round == args.n_epochs:
            evaluation.evaluate_round(exp, row)
        write(row)
        exp.rows.append(row)
        sent = row["bytes_up_total"] + row["bytes_down_total"]
        status = {"test acc": f"{row['test_accs']:.4f}"} if "test_accs" in row else {}
        if "train_losses" in row:
            status["train loss"] = f"{row['train_losses']:.4f}"
        status |= {"MB so far": f"{sent / 1e6:.1f}"}
        bar.set_postfix(status, refresh=False)
        if not on_terminal and not args.quiet:
            words = ", ".join(f"{key} {value}" for key, value in status.items())
            print(f"round {round}/{args.n_epochs}: {words}, {row['train_seconds']:.2f} s", flush=True)
        if keeper:
            keeper.after_round(exp)


# --------------------------------------------------------------------------------------------------------------------
# What a run leaves behind


def make_algorithm(args, layout, **changes):
    """Return the algorithm of the settings `args`, `changes` among its options made."""
    cls = ALGORITHMS[args.algorithm]
    return cls(layout, **{name: changes.get(name, getattr(args, name)) for name in cls.options})


def part_chooser(args, layout):
    """Return the algorithm that chooses what of a client's change goes into its part: one that holds nothing back."""
    if args.part_sparsity is None:
        return make_algorithm(args, layout, residual="none")
    if "sparsity" in ALGORITHMS[args.algorithm].options:
        return make_algorithm(args, layout, residual="none", sparsity=args.part_sparsity)
    return LaSFL(layout, sparsity=args.part_sparsity, mask_scope="global")


def save_clients(exp, keeper=None):
    """Write every client's personal part to --save_clients; return what personal.summary says of them.

    Raises FloatingPointError if a client diverges, and Interrupted if the Keeper heard a signal.
    """
    args, test = exp.args, exp.splits.test
    histograms = results.histograms(exp).tolist()

    def next_client(number):
        if keeper:
            keeper.heed(exp)
        return exp.trainer.client(number, args.n_epochs + 1)

    personal.save(
        args.save_clients,
        evaluation.served(exp),
        map(next_client, range(args.n_clients)),
        part_chooser(args, exp.model.layout),
        args.part_bits or args.value_bits,
        histograms,
        utils.settings_of(args),
        test.labels.cpu(),
        lambda vector: evaluation.predict(exp, vector, test).argmax(1).cpu(),
    )
    return judge_clients(exp, args.save_clients)


def prepare_judge(given):
    """Return an Experiment without clients, as of the run that left --evaluate_clients; `given` names the machine."""
    args, _ = personal.load(given.evaluate_clients)
    args.pretrained = False  # the shared model comes from the folder
    device = pick_device(given.device, given.deterministic)
    return assemble(
        args, data.load_dataset(args.dataset, given.data_root, args.seed, args.image_size, args.shift), [], device
    )


def judge_clients(exp, folder):
    """Evaluate what --save_clients left in `folder`: its accuracy.csv and figure; return what personal.summary says."""
    _, entries = personal.load(folder)
    test = exp.splits.test
    rows = personal.evaluate(
        folder,
        entries,
        exp.model.layout,
        test.labels.cpu(),
        exp.splits.n_classes,
        lambda vector: evaluation.predict(exp, vector, test).argmax(1).cpu(),
        exp.device,
    )
    records.write_atomic(Path(folder) / "accuracy.csv", records.csv_text(personal.COLUMNS, rows))
    import plotting

    plotting.plot_clients(rows, Path(folder) / "accuracy")
    found = personal.summary(rows, exp.model.layout.dim)
    print(
        f"{folder}: {len(rows)} clients on their own mix of labels: shared model {found['shared_accuracy']:.4f}, with "
        f"their parts {found['personal_accuracy']:.4f}, full copies {found['full_accuracy']:.4f}; "
        f"{found['client_bytes'] / 1e6:.3f} MB of parts, {found['times_smaller']:.1f} times less than full copies "
        f"({found['times_smaller_with_shared']:.1f} with the shared model); {Path(folder) / 'accuracy'}.csv and .png"
    )
    return found


def main(args, ranks=None):
    """Run the experiment of the resolved settings `args`, or say that it is finished already. Raises InputError."""
    if args.evaluate_clients:
        return judge_clients(prepare_judge(args), args.evaluate_clients)
    name, metrics = utils.run_name(args), Path(args.metrics_dir)
    kept = Checkpoints(args.checkpoint_dir, name)
    finished = f"{name}: already finished, see {metrics / name}_metrics.csv (run again with --overwrite)"
    fresh = args.fresh and not int(os.environ.get("SLURM_RESTART_COUNT", 0))  # once, not whenever a job is requeued

    def goes_on():
        return kept.exist() and not fresh

    if not goes_on():
        if results.already_finished(args, name):
            return print(finished)
        check_outputs(args)
    records.read_results(args.results_file)  # so that a bad one is found before the work, not after
    keeper = Keeper(kept, args.checkpoint_every)
    with keeper.listening():
        exp = prepare(args, ranks)
        with records.exclusively(metrics / f".{name}.lock"), records.exclusively(kept.lock):
            if not goes_on() and results.already_finished(args, name):  # by another process, meanwhile
                return print(finished)
            if fresh:
                kept.remove()
            settings = resume(exp, kept)
            if settings is not None:
                check_outputs(args, settings)
                print(f"{name}: goes on after round {len(exp.rows)} of {args.n_epochs}", file=sys.stderr)
            if not args.quiet:
                words = partitions.described(results.histograms(exp), len(exp.splits.train))
                print(f"split {exp.split}: {words}", file=sys.stderr)
            for path in (kept.newest, metrics / f"{name}.json", metrics / f"{name}_metrics.csv"):
                records.remove_leftovers(path)
            try:
                run(exp, metrics, keeper)
            except (FloatingPointError, OSError) as error:
                records.note_failure(metrics / f"{name}.json", error)
                raise


def check_outputs(args, earlier=None):
    """Raise InputError if the run would write over what is not its own; earlier: settings of the run that goes on."""
    earlier = earlier or {}
    weights, clients = args.save_weights, args.save_clients
    if args.overwrite:
        return
    if weights and weights != earlier.get("save_weights") and Path(weights).exists():
        raise InputError(f"--save_weights {weights}: is there already; another name, or --overwrite")
    if clients and clients != earlier.get("save_clients"):
        personal.check_folder(clients)


def run(exp, metrics, keeper):
    """Train and evaluate `exp`, and leave everything a finished run leaves; it counts as finished at the very end."""
    args, name = exp.args, exp.name
    records.write_json(metrics / f"{name}.json", results.record(exp, finished=False))
    with records.MetricsCSV(metrics / f"{name}_metrics.csv", COLUMNS, exp.rows) as csv:
        run_rounds(exp, csv.write, keeper)
    if not exp.judged:  # it went on after the last round
        *_, exp.judged = evaluation.evaluate(exp, exp.splits.test)
    final = results.final_figures(exp)
    if args.save_weights or args.save_clients:  # once one of them is begun, the run must be able to go on
        keeper.save(exp)
    if args.save_weights:
        exp.model.load(evaluation.served(exp))
        records.remove_leftovers(args.save_weights)
        models.save_weights(args.save_weights, exp.model.module, data.label_set(args.dataset))
    figures = draw(args, name)
    if args.save_clients:
        try:
            final |= save_clients(exp, keeper)
        except FloatingPointError:  # a client that diverges as it trains once more is no fault of the run
            leave_results(exp, metrics, final)
            keeper.checkpoints.remove()
            raise
    leave_results(exp, metrics, final)
    keeper.checkpoints.remove()
    print(
        f"{name}: test accuracy {final['accuracy']:.4f}, F1 {final['f1']:.4f}, "
        f"{final['bytes_up'] / 1e6:.2f} MB up, {final['bytes_down'] / 1e6:.2f} MB down, "
        f"{final['train_seconds']:.1f} s of training; {metrics / name}_metrics.csv, {figures}"
    )


def leave_results(exp, metrics, final):
    """Write the row of results.csv, then the record, with which the run counts as finished."""
    record = results.record(exp, finished=True, final=final)
    records.add_results(exp.args.results_file, [records.result_row(record)])
    records.write_json(metrics / f"{exp.name}.json", record)


def draw(args, name):
    """Draw the run's own figures; return where they are."""
    import plotting

    return plotting.plot_run(Path(args.metrics_dir), name, Path(args.plots_dir))


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
        status = 2
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
    STATUS = program(ARGS)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # a scheduler's warning no longer matters while the interpreter ends
    sys.exit(STATUS)
