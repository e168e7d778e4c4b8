"""Runs of the program in processes of their own, and what they leave."""

import contextlib
import csv
import hashlib
import json
import os
import resource
import runpy
import socket
import subprocess
import sys
import tempfile
from multiprocessing.reduction import DupFd

import torch

import fedalg
from fedmerge.config.parser import parse_args
from fedmerge.reporting import run_figures

TIMES = {"train_seconds", "eval_seconds", "train_time"}


FEW = {"n_epochs": 5, "n_clients": 6, "participation": 0.5, "n_client_epochs": 1, "batch_size": 32, "lr": 0.05}


def flags(settings, folder):
    """The command line of `settings` {name: value}, with all outputs in `folder`."""
    files = {"metrics_dir": "m", "plots_dir": "p", "checkpoint_dir": "c", "results_file": "r.csv"}
    words = {**settings, **{name: str(folder / file) for name, file in files.items()}}
    return [w for name, v in words.items() for w in ([f"--{name}"] if v is True else [f"--{name}", str(v)])]


def no_figures(*_):
    """What draws the figures of a run where nobody looks at them."""
    return "no figures"


def call(function, what, environment):
    """What a child process does: this function, with these variables."""
    os.environ.update(environment)
    run_figures.plot_run = no_figures
    function(*what)


def go(words, said=os.devnull, largest=None):
    """What a child process does: fedalg.py with these words, on one thread, its standard error in the file `said`."""
    torch.set_num_threads(1)
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    with contextlib.redirect_stdout(open(os.devnull, "w")), contextlib.redirect_stderr(open(said, "w", buffering=1)):
        sys.exit(fedalg.program(parse_args(words)))


def finished(spawn, words, folder, environment=()):
    """Run a script, words[0], in a folder, in a process that `spawn` starts; return it as subprocess.run does."""
    environment = {**os.environ, **dict(environment)}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
        process = spawn(words, folder, (DupFd(out.fileno()), DupFd(error.fileno())), environment, function=script)
        process.join()
        texts = []
        for file in (out, error):
            file.seek(0)
            texts.append(file.read().decode())
    return subprocess.CompletedProcess(words, process.exitcode, *texts)


def script(words, folder, streams, environment):
    """What a child process does: `python` with these words, in a folder; what it says goes to the two streams."""
    for stream, number in zip(streams, (1, 2), strict=True):
        os.dup2(stream.detach(), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")


def outcome(folder):
    """What a run left, times aside: the rows of its CSV and of the CSV of results, its JSON, its weights."""

    def rows(path):
        with open(path, newline="") as file:
            return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]

    (record,) = (folder / "m").glob("*.json")
    record = json.loads(record.read_text())
    record["final"] = {k: v for k, v in record["final"].items() if k not in TIMES}
    for name in ("metrics_dir", "plots_dir", "checkpoint_dir", "results_file", "save_weights", "save_clients"):
        record["settings"].pop(name)
    (table,) = (folder / "m").glob("*.csv")
    weights = torch.load(folder / "w.pt", weights_only=True)["state"] if (folder / "w.pt").exists() else {}
    return rows(table), rows(folder / "r.csv"), record, {name: t.tolist() for name, t in weights.items()}


def n_rows(folder):
    """How many rounds are in the CSV."""
    return sum(max(0, len(table.read_bytes().splitlines()) - 1) for table in (folder / "m").glob("*.csv"))


def digest(tensor):
    """A hash of the numbers of a tensor."""
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def free_port():
    """A port on which nobody listens."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environments(n):
    """The variables of each of n processes, as torchrun sets them."""
    common = {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [{**common, "RANK": str(i), "LOCAL_RANK": str(i)} for i in range(n)]
