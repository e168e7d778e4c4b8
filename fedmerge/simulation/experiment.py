"""An experiment, put together of the settings: server, clients, evaluator, and where clients train."""

import contextlib
import io
import os
from dataclasses import dataclass, replace

import torch

from fedmerge import datasets, networks, partitions
from fedmerge.config.options import OPTIONS
from fedmerge.config.run_name import run_name
from fedmerge.config.split_files import split_name
from fedmerge.errors import InputError
from fedmerge.local_training.settings import LocalSettings
from fedmerge.local_training.trainer import Trainer
from fedmerge.randomness import key_seed
from fedmerge.registry import LOCAL_METHODS, NETWORKS
from fedmerge.simulation import capacity, personal_parts
from fedmerge.simulation.attacks import Attack
from fedmerge.simulation.backend import ThreadBackend
from fedmerge.simulation.client_pool import ClientPool
from fedmerge.simulation.client_threads import ClientThreads, how_many
from fedmerge.simulation.distributed import ProcessBackend
from fedmerge.simulation.evaluation import Evaluator
from fedmerge.simulation.history import History
from fedmerge.simulation.server import Server, chosen_options


@dataclass
class Experiment:
    """The parts of a run."""

    settings: object  # a Namespace of all flags
    name: str
    split: str  # its name
    device: torch.device
    splits: datasets.Splits
    server: Server
    clients: ClientPool
    evaluator: Evaluator
    history: History
    backend: object
    start: torch.Tensor | None = None  # the initial model [dim], where personal parts are masks of the way from it

    @property
    def model(self):
        """The FlatModel that is trained and judged in this thread."""
        return self.evaluator.model

    def histograms(self):
        """Return the label counts int64 [n_clients, n_classes] of the clients."""
        return partitions.histograms(self.splits.train.labels.cpu(), self.clients.parts, self.splits.n_classes)


def prepare(settings, group=None):
    """Load the data, split it, build the model and the algorithm. Raises InputError for anything the user must mend.

    group: the ProcessGroup of the run, if it has several processes.
    """
    device = pick_device(settings.device, settings.deterministic)
    if settings.capture and device.type != "cuda":
        raise InputError("--capture replays CUDA graphs, and there is no CUDA device here: leave it out")
    networks.check_name(settings.model_name)
    first = not group or group.rank == 0
    if group and first:
        group.tell({"prepare": True})
    if group and device.type == "cuda":
        device = torch.device("cuda", group.local_rank % torch.cuda.device_count())  # SLURM may show each its own
    with contextlib.nullcontext() if first else contextlib.redirect_stderr(io.StringIO()):  # one warns of the data
        splits = load_splits(settings)
        parts = partitions.split_into_clients(settings, splits.train, first, splits.domains)
        run = assemble(settings, splits, parts, device)
    if first:
        capacity.check_room(run.server, run.clients, run.name)
    if group:
        _share_out(run, group)
    return run


def _share_out(run, group):
    """Let the ProcessGroup train the Experiment."""
    share = -(-run.server.cohort_size // group.size)
    who = f"each of {group.size} processes"
    capacity.check_cohort(run.settings, share, run.server.algorithm.upload_dim, who)
    run.backend = ProcessBackend(run.server, run.clients, group)
    if group.rank == 0:
        group.tell({"begin": True})  # all is well so far
        group.use(run.device)


def load_splits(settings):
    """Return the datasets.Splits of the settings."""
    s = settings
    splits = datasets.load_dataset(s.dataset, s.data_root, s.seed, s.image_size, s.shift, s.validation)
    if not s.normalise:
        splits = replace(splits, mean=torch.zeros_like(splits.mean), std=torch.ones_like(splits.std))
    return replace(splits, reflect=s.augment == "reflect")


def assemble(settings, splits, parts, device):
    """Return the Experiment on Splits divided into `parts`, with a fresh model and algorithm on `device`."""
    model = networks.FlatModel(build_module(settings, splits, device), device, settings.bn != "frozen")
    if settings.bn_every > 1:
        check_statistics(model, settings.model_name)
    splits = noisy(settings, splits, parts).to(device)
    server = Server(settings, model.layout, model.vector.clone(), [len(part) for part in parts])
    if settings.bn_every > 1 and not server.crossing.n_buffers:
        raise InputError(f"--bn_every has no effect with --algorithm {settings.algorithm}, which sends no statistics")
    if server.keeps_all:
        needs_all = f"--merge {settings.merge}"
        capacity.check_cohort(settings, server.cohort_size, server.algorithm.upload_dim, needs_all)
    if settings.part_kind != "sparse" and server.algorithm.personalises:
        raise InputError(
            f"--part_kind {settings.part_kind}: under --algorithm {settings.algorithm}, clients have more of their own"
        )
    trainer = make_trainer(settings, model, splits, parts, device)
    if parts:
        server.begin_with(trainer)
    start = server.theta.clone() if settings.part_kind != "sparse" else None
    at_once = server.cohort_size if parts else settings.n_clients  # without any, all are judged
    threads = ClientThreads(trainer, 1 if trainer.draws else how_many(settings.parallel_clients, device, at_once))
    clients = ClientPool(server, parts, trainer, threads)
    evaluator = Evaluator(model, splits, settings.precision == "bf16")
    history, backend = History(settings.n_epochs), ThreadBackend(server, clients)
    names = run_name(settings), split_name(settings)
    return Experiment(settings, *names, device, splits, server, clients, evaluator, history, backend, start)


def noisy(settings, splits, parts):
    """Return the Splits with the noise of --feature_noise, if any."""
    if not settings.feature_noise:
        return splits
    return datasets.with_noise(splits, parts, settings.feature_noise, settings.seed)


def check_statistics(model, name):
    """Raise InputError unless a FlatModel's buffers are BatchNorm's statistics, which --bn_every can leave out.

    name: the network's. Layers that are called norm may use theirs in training, as batch renormalisation does.
    """
    if model.layout.dim == model.layout.n_trainable:
        raise InputError(f"--bn_every has no effect with --model_name {name}, which has no BatchNorm: leave it out")
    owners = (m for m in model.module.modules() if not isinstance(m, torch.nn.modules.batchnorm._BatchNorm))
    n_others = sum(b.numel() for m in owners for b in m.buffers(recurse=False) if b.is_floating_point())
    if n_others:
        raise InputError(
            f"--bn_every: {name} has {n_others} buffers besides BatchNorm's statistics, which may be used in training"
        )


def make_trainer(settings, model, splits, parts, device):
    """Return the Trainer of the settings."""
    local_settings = LocalSettings(
        seed=settings.seed,
        epochs=settings.n_client_epochs,
        batch_size=settings.batch_size,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        lr_decay=settings.lr_decay,
        clip_norm=settings.clip_norm,
        augment=settings.augment != "none",
        bf16=settings.precision == "bf16",
        max_steps=settings.local_steps,
        optimizer=settings.local_optimizer,
        bn=settings.bn,
        bn_means=settings.bn_every > 1,  # what was received is of an earlier round, and few steps would not forget it
        bn_recalibrate=settings.bn_recalibrate,
        capture=settings.capture and device.type == "cuda",
    )
    method = LOCAL_METHODS[settings.local]
    local = method(**chosen_options(settings, method.options))
    attack = None
    if settings.attack:
        s = settings
        attack = Attack(s.attack, s.n_clients, s.attackers, s.attack_strength, s.seed)
    return Trainer(model, splits, parts, local_settings, local, attack)


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


def starting_module(settings, splits, device="cpu"):
    """Return the network of --model_name with its starting weights, on the CPU; the `device` is to hold it."""
    channels, size = splits.train.images.shape[1], splits.image_size
    seed = key_seed(settings.seed, "init")
    name = settings.model_name
    options = chosen_options(settings, NETWORKS[name].registered.get("options", ()))
    module = networks.build_model(name, channels, size, splits.n_classes, settings.norm, seed, device, **options)
    if settings.batch_size == 1 and any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in module.modules()):
        raise InputError(f"--batch_size 1 is too small for the BatchNorm of {name}: at least 2")
    if settings.weight_standardisation:
        networks.standardise(module)
    if settings.pretrained:
        networks.load_pretrained(module, name)
    if settings.init_weights:
        networks.load_weights(module, settings.init_weights, datasets.label_set(settings.dataset))
    return module


def build_module(settings, splits, device="cpu"):
    """Return the `starting_module`, frozen but for what --trainable names, and with adapters if these are trained."""
    s, module = settings, starting_module(settings, splits, device)
    with networks.keyed_draws(key_seed(s.seed, "adapters")):
        networks.choose_trained(module, s.trainable, s.lora_rank, s.lora_alpha, s.lora_layers, s.lora_freeze_a)
    return module


def prepare_judge(given):
    """Return an Experiment without clients, as of the run that left --evaluate_clients; `given` names the machine."""
    settings = personal_parts.load(given.evaluate_clients, given.data_root)
    if settings.trainable == "all" and settings.bn != "frozen":
        settings.pretrained = False  # all of the shared model comes from the folder
    machine = [option.name for option in OPTIONS["machine"]]
    vars(settings).update({name: getattr(given, name) for name in ("data_root", "quiet", *machine)})
    device = pick_device(settings.device, settings.deterministic)
    return assemble(settings, load_splits(settings), [], device)
