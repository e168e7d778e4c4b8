"""Seconds a round of this program against other simulators and a bare loop: the same clients, batches of the same size.

    python benchmarks/peers.py [--works W1 W2] [--others "bare loop" pfl flwr] [--rounds 5] [--device cpu]

"data loaders" is the bare loop as most people write it: a DataLoader a client over images in main memory, no workers.
Others can be "one thread" and "two processes", too: this program so, each process on one thread. Each peer gets a
virtual environment of its own in --folder, made here once (pip, several GB). Every simulator is a process that waits
until it is its turn; they take turns round by round, after one round to warm up, and the ratio is that of the medians.
All train the network, built by this program's models.py, and the clients of round_time.py's works, from images that are
normalised beforehand, with torch.optim.SGD or what this program has for it; orders of batches differ.
"""

import argparse
import contextlib
import functools
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.append(str(Path(__file__).resolve().parent.parent))  # last: what a peer imports is its own

from fedmerge import networks

PEERS = {"pfl": ["pfl[pytorch]", "torchvision"], "flwr": ["flwr[simulation]", "torch", "torchvision"]}
LR, MOMENTUM = 0.01, 0.9


# --------------------------------------------------------------------------------------------------------------------
# Simulators: each a function (work, turns) that trains one round of work["rounds"] for each of `turns`


def network(work):
    """Return the work's network, as this program builds it; a peer's own Python imports it, too."""

    return networks.build_model(**work["network"]).to(work["device"])


def with_ours(work, turns):
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import round_time

    run = round_time.experiment(work["name"], work["device"])
    for round, _ in enumerate(turns, 1):
        round_time.train_round(run, round)


def with_bare_loop(work, turns, loop="BareLoop"):
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import round_time

    loop = getattr(round_time, loop)(round_time.experiment(work["name"], work["device"]))
    for round, _ in enumerate(turns, 1):
        loop.round(round)


def with_data_loaders(work, turns):
    with_bare_loop(work, turns, "LoaderLoop")


def on_one_thread(work, turns):
    torch.set_num_threads(1)
    with_ours(work, turns)


def in_two_processes(work, turns):
    """Train in this process and in another that it starts."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import round_time

    from fedmerge.simulation.distributed import ProcessBackend, worker_loop
    from fedmerge.simulation.process_group import ProcessGroup

    torch.set_num_threads(1)
    second = os.environ.get("RANK") == "1"
    os.environ.update({"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29719"})
    if not second:
        command = [sys.executable, __file__, "--serve", "two processes", "--work", work["path"]]
        subprocess.Popen(command, env=os.environ | {"RANK": "1"}, stdin=subprocess.DEVNULL)
        os.environ["RANK"] = "0"
    run = round_time.experiment(work["name"], work["device"])
    group = ProcessGroup.join()
    if second:
        worker_loop(group, lambda: run)
        return
    run.backend = ProcessBackend(run.server, run.clients, group)
    group.tell({"prepare": True})
    for round, _ in enumerate(turns, 1):
        round_time.train_round(run, round)
    group.tell({"status": 0})


def with_pfl(work, turns):
    import numpy
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.hyperparam.base import NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network(work)

        def loss(self, x, y, eval=False):
            return F.cross_entropy(self.inner(x), y)

        def metrics(self, x, y, eval=True):
            return {}

    class Turns(TrainingProcessCallback):
        def on_train_begin(self, *, model):
            next(turns)
            return Metrics()

        def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
            return next(turns, None) is None, Metrics()

    numpy.random.seed(0)
    x, y = work["x"].to(work["device"]), work["y"].to(work["device"])
    users = iter([client for clients in work["rounds"] for client in clients])

    def dataset_of(user):
        part = work["parts"][user].to(work["device"])
        part = part[torch.randperm(len(part), device=part.device)]
        return Dataset((x[part], y[part]), user_id=user)

    module, cohort = Network(), len(work["rounds"][0])
    model = PyTorchModel(
        module, functools.partial(torch.optim.SGD, momentum=MOMENTUM), torch.optim.SGD(module.parameters(), lr=1.0)
    )
    data = FederatedDataset(dataset_of, lambda: next(users))
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=len(work["rounds"]),
            evaluation_frequency=10**6,
            train_cohort_size=cohort,
            val_cohort_size=None,
        ),
        backend=SimulatedBackend(training_data=data, val_data=None),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=work["epochs"], local_learning_rate=LR, local_batch_size=work["batch_size"]
        ),
        callbacks=[Turns()],
    )


def with_flwr(work, turns):
    os.environ["RAY_DEDUP_LOGS"] = "0"
    import logging

    from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    path, here, on_gpu = work["path"], str(Path(__file__).resolve().parent), work["device"] != "cpu"
    server_app, client_app = ServerApp(), ClientApp()

    @client_app.train()
    def train(message, context):
        sys.path.insert(0, here)
        from peers import load, network  # once in each of ray's processes, whereas this function comes with each client

        torch.set_num_threads(1)
        state = load(path)
        part = state["parts"][message.content["config"]["client"]]
        module = network(state)
        module.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimizer = torch.optim.SGD(module.parameters(), lr=LR, momentum=MOMENTUM)
        for _ in range(state["epochs"]):
            for chosen in part[torch.randperm(len(part))].to(state["device"]).split(state["batch_size"]):
                optimizer.zero_grad()
                F.cross_entropy(module(state["x"][chosen]), state["y"][chosen]).backward()
                optimizer.step()
        sent = {
            "arrays": ArrayRecord(module.cpu().state_dict()),
            "metrics": MetricRecord({"num-examples": len(part)}),
        }
        return Message(content=RecordDict(sent), reply_to=message)

    class InTurns(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            nodes = list(grid.get_node_ids())
            while len(nodes) < work["n_clients"]:
                time.sleep(0.1)
                nodes = list(grid.get_node_ids())
            next(turns)
            for node, client in zip(nodes, work["rounds"][server_round - 1], strict=False):
                content = RecordDict({"arrays": arrays, "config": ConfigRecord({"client": client})})
                yield Message(content=content, message_type="train", dst_node_id=node)

    @server_app.main()
    def serve(grid, context):
        strategy = InTurns(fraction_evaluate=0.0)
        strategy.start(grid, ArrayRecord(network(work).cpu().state_dict()), num_rounds=len(work["rounds"]))
        next(turns, None)

    # One client to a core, or four on the GPU.
    resources = {"num_cpus": 1, "num_gpus": 0.25 if on_gpu else 0.0}
    run_simulation(
        server_app,
        client_app,
        num_supernodes=work["n_clients"],
        backend_config={
            "init_args": {"num_cpus": os.cpu_count(), "log_to_driver": False},
            "client_resources": resources,
        },
    )


SIMULATORS = {
    "fedalg": with_ours,
    "one thread": on_one_thread,
    "two processes": in_two_processes,
    "bare loop": with_bare_loop,
    "data loaders": with_data_loaders,
    "pfl": with_pfl,
    "flwr": with_flwr,
}


# --------------------------------------------------------------------------------------------------------------------
# Taking turns


@functools.cache
def load(path):
    """Return what `describe` wrote, images normalised, on its device."""
    work = torch.load(path, weights_only=True)
    work["x"] = ((work["x"] / 255 - 0.5) / 0.5).to(work["device"])
    work["y"] = work["y"].to(work["device"])
    return work | {"path": str(Path(path).resolve())}


def describe(name, n_rounds, device, path):
    """Write the clients and rounds of a work of round_time.py to `path`."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import round_time

    run = round_time.experiment(name, "cpu")
    args, train = run.settings, run.splits.train
    drawn = [
        round_time.sample_clients(args.n_clients, args.participation, args.seed, r) for r in range(1, n_rounds + 1)
    ]
    work = {"name": name, "device": device, "batch_size": args.batch_size, "n_clients": args.n_clients}
    work["epochs"] = args.n_client_epochs
    work["network"] = {"name": args.model_name, "channels": 3, "image_size": 32, "n_classes": 10, "norm": args.norm}
    work["network"]["seed"] = args.seed
    torch.save({**work, "parts": run.clients.parts, "rounds": drawn, "x": train.images, "y": train.labels}, path)


def answer(said):
    """Yield for each line that comes in; write the seconds from then until this is asked for again to `said`."""
    print("ready", file=said, flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        yield True
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        print(time.perf_counter() - started, file=said, flush=True)


def start(python, name, path, folder):
    """Start a simulator; return its process, which is ready."""
    log = folder / f"{name.replace(' ', '_')}.log"
    command = [str(python), __file__, "--serve", name, "--work", str(path)]
    with open(log, "w") as said:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True)
    if process.stdout.readline().strip() != "ready":
        sys.exit(f"peers.py: error: {name} did not start: see {log}")
    return process


def turn(process, name):
    process.stdin.write("\n")
    process.stdin.flush()
    seconds = process.stdout.readline()
    if not seconds.strip():
        sys.exit(f"peers.py: error: {name} ended")
    return float(seconds)


def environment(name, folder):
    """Return the Python of a peer's virtual environment; make that if it is not there."""
    python = folder / name / "bin" / "python"
    stamp = folder / name / "installed"
    if not stamp.exists():
        print(f"installing {', '.join(PEERS[name])} in {folder / name}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PEERS[name]], check=True)
        stamp.touch()
    return python


def version(python, name):
    code = f"import importlib.metadata as m; print(m.version({name!r}), 'on torch', m.version('torch'))"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--works", nargs="+", default=["W1", "W2"], choices=["W1", "W2", "W3"])
    parser.add_argument(
        "--others", nargs="*", default=["bare loop", "data loaders", *PEERS], choices=list(SIMULATORS)[1:]
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, default=Path(".benchmarks"))
    parser.add_argument("--serve", choices=SIMULATORS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        said = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what the simulator prints goes to the log
        with contextlib.redirect_stdout(sys.stderr):
            SIMULATORS[args.serve](load(args.work), answer(said))
        return
    args.folder.mkdir(exist_ok=True)
    pythons = dict.fromkeys(("fedalg", *args.others), sys.executable)
    peers = [name for name in args.others if name in PEERS]
    pythons |= {name: environment(name, args.folder) for name in peers}
    print(f"torch {torch.__version__}, {args.device}, {os.cpu_count()} cores")
    print("".join(f"{name} {version(pythons[name], name)}\n" for name in peers))
    print("| work | simulator | seconds a round | fedalg's share of it | its range |\n|---|---|---|---|---|")
    for name in args.works:
        path = args.folder / f"{name}.pt"
        describe(name, args.rounds + 1, args.device, path)
        processes = {peer: start(python, peer, path, args.folder) for peer, python in pythons.items()}
        times = {peer: [] for peer in processes}
        for _ in range(args.rounds + 1):  # the first warms up
            for peer, process in processes.items():
                times[peer].append(turn(process, peer))
        for process in processes.values():
            process.stdin.close()
            process.wait(120)
        for peer, seconds in times.items():
            ratios = [a / b for a, b in zip(times["fedalg"][1:], seconds[1:], strict=True)]
            median = statistics.median(seconds[1:])
            share = statistics.median(times["fedalg"][1:]) / median
            print(
                f"| {name} | {peer} | {median:.2f} | {share:.2f} | {min(ratios):.2f} to {max(ratios):.2f} |", flush=True
            )


if __name__ == "__main__":
    main()
