"""The program as a user runs it, and the round loop."""

import json
import subprocess
import sys

import pandas as pd
import pytest
import torch
from conftest import ROOT

import fedalg
import plotting
from fedmerge import datasets, locks, randomness, wire
from fedmerge.config.parser import parse_args
from fedmerge.config.resolve import resolve
from fedmerge.config.run_name import run_name
from fedmerge.datasets import batches
from fedmerge.randomness import generator
from fedmerge.registry import ALGORITHMS
from fedmerge.reporting import outputs, results_csv, run_record
from fedmerge.simulation import evaluation, rounds
from fedmerge.simulation.cohort import Sent
from fedmerge.simulation.sampling import sample_clients

QUICK = ["--dataset=DIGITS", "--n_epochs=2", "--n_client_epochs=1", "--batch_size=16", "--device=cpu"]
ABSENT = "cuda" if torch.backends.mps.is_available() else "mps"  # no machine has both
TIMES = ["train_seconds", "eval_seconds"]


def only(folder, pattern):
    (path,) = folder.glob(pattern)
    return path


def metrics_of(folder):
    return pd.read_csv(only(folder, "metrics/*.csv"))


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_each_algorithm_leaves_all_its_outputs(program, tmp_path, algorithm):
    level = "iid" if algorithm == "centralised" else "0.5"
    pool = algorithm in ("lss", "soups", "diwa")
    flags = [flag.replace("n_client_epochs", "soup_epochs") if pool else flag for flag in QUICK]
    done = program("--algorithm", algorithm, "--dirichlet", level, "--seed", 3, *flags)
    assert done.returncode == 0, done.stderr
    few = ("batch_size=16", "soup_epochs=1") if pool else ("n_client_epochs=1", "batch_size=16")
    name = "_".join([algorithm, "DIGITS", level, "3", "n_epochs=2", *few])
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    plots = {f"plots/{name}_{kind}.png" for kind in ("accuracy_curves", "loss_curves", "partition")}
    files = {name for name in files if not name.endswith(".lock")}
    assert files == {f"metrics/{name}_metrics.csv", f"metrics/{name}.json", "results.csv"} | plots
    assert all((tmp_path / plot).stat().st_size > 5000 for plot in plots)
    rows = metrics_of(tmp_path)
    assert list(rows) == fedalg.COLUMNS
    assert rows["epoch"].tolist() == [1, 2]
    assert rows.notna().all(axis=None)
    record = json.loads((tmp_path / f"metrics/{name}.json").read_text())
    assert record["finished"]
    assert str(record["settings"]["dirichlet"]) == level
    assert sum(map(sum, record["partition"]["histograms"])) == record["data"]["samples"]["train"] == 1294
    assert record["environment"]["torch"] == torch.__version__
    (result,) = pd.read_csv(tmp_path / "results.csv").to_dict("records")
    published = "method,dataset,Dirichlet,rounds,accuracy,f1,precision,recall,communication,train_time"
    assert (tmp_path / "results.csv").read_text().startswith(published + ",")
    assert result["run"] == name
    assert result["accuracy"] == pytest.approx(rows["test_accs"].iloc[-1])
    assert result["val_accuracy"] == pytest.approx(rows["val_accs"].iloc[-1])
    assert result["communication"] == pytest.approx((rows["bytes_up"] + rows["bytes_down"]).mean())
    assert "round 2/2: test acc" in done.stdout  # not on a terminal: a line a round


def test_the_same_seed_gives_the_same_csv_bit_for_bit_and_another_does_not(program, tmp_path):
    frames = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        where = ["--metrics_dir", tmp_path / folder / "metrics", "--seed", seed]
        assert program("--algorithm", "las", "--norm", "batch", *QUICK, *where).returncode == 0
        frames.append(metrics_of(tmp_path / folder).drop(columns=TIMES))
    assert frames[0].equals(frames[1])
    assert not frames[0].equals(frames[2])


def test_a_finished_run_is_not_run_again_without_overwrite(program, tmp_path):
    assert program(*QUICK).returncode == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.suffix != ".lock"}
    again = program(*QUICK)
    assert again.returncode == 0
    assert "already finished" in again.stdout
    assert all(path.read_bytes() == content for path, content in before.items())
    assert program(*QUICK, "--overwrite").returncode == 0
    assert len(pd.read_csv(tmp_path / "results.csv")) == 1


def test_an_unfinished_run_is_run_again(program, tmp_path):
    assert program(*QUICK).returncode == 0
    path = only(tmp_path, "metrics/*.json")
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"finished": False}))
    assert "test accuracy" in program(*QUICK).stdout


def test_a_name_that_holds_a_run_of_other_settings_is_refused(program, tmp_path):
    """As after a default has changed between versions, or with another split in a partition file of the same name."""
    assert program(*QUICK).returncode == 0
    path = only(tmp_path, "metrics/*.json")
    record = json.loads(path.read_text())
    record["settings"]["momentum"] = 0.5
    path.write_text(json.dumps(record))
    done = program(*QUICK)
    assert done.returncode == 2
    assert "was run with momentum = 0.5, not 0.9" in done.stderr


def test_a_run_of_another_accounting_of_bytes_is_not_taken_for_this(program, tmp_path):
    assert program(*QUICK).returncode == 0
    path = only(tmp_path, "metrics/*.json")
    record = json.loads(path.read_text())
    del record["payload_version"]
    path.write_text(json.dumps(record))
    done = program(*QUICK)
    assert (done.returncode, "counted bytes otherwise" in done.stderr) == (2, True)


def test_a_partition_file_is_written_reused_and_not_confused(program, tmp_path):
    file = tmp_path / "split.json"
    flags = [*QUICK, "--dirichlet", 0.5, "--partition_file", file]
    assert program(*flags).returncode == 0
    assert "already finished" in program(*flags).stdout
    drawn = json.loads(only(tmp_path, "metrics/*.json").read_text())["partition"]["sha256"]
    assert program(*flags, "--algorithm", "fedprox").returncode == 0
    assert {json.loads(p.read_text())["partition"]["sha256"] for p in tmp_path.glob("metrics/*.json")} == {drawn}
    done = program(*flags, "--dirichlet", 0.1)
    assert (done.returncode, "was not drawn with --dirichlet 0.1" in done.stderr) == (2, True)
    split = json.loads(file.read_text())
    split["clients"] = split["clients"][::-1]
    file.write_text(json.dumps(split))  # somebody changed it
    done = program(*flags)
    assert (done.returncode, "another split" in done.stderr) == (2, True)
    file.write_text(json.dumps({name: split[name] for name in ("clients", "labels_sha256")}))  # made by hand
    done = program(*flags)
    assert (done.returncode, "--dirichlet has no effect with --partition_file" in done.stderr) == (2, True)


def test_a_run_that_goes_on_elsewhere_is_left_alone(program, tmp_path):
    name = run_name(parse_args(QUICK))
    with locks.exclusively(tmp_path / "metrics" / f".{name}.lock"):
        done = program(*QUICK)
    assert done.returncode == outputs.ELSEWHERE
    assert "going on in another process" in done.stderr
    assert program(*QUICK).returncode == 0


def test_everything_may_lie_in_one_folder(program, tmp_path):
    """By three spellings of it."""
    (tmp_path / "link").symlink_to(tmp_path / "same")
    where = {"metrics_dir": "same", "checkpoint_dir": "same/../same", "plots_dir": "link", "results_file": "same/r.csv"}
    (tmp_path / "same").mkdir()
    done = program(*QUICK, *(word for name, place in where.items() for word in (f"--{name}", place)))
    assert done.returncode == 0, done.stderr
    (tmp_path / "same" / "r.csv").unlink()
    done = program(*QUICK, "--overwrite", "--metrics_dir", "same", "--checkpoint_dir", "link")
    assert done.returncode == 0, done.stderr


SITE = """import tempfile
def mkdtemp(*given, **more):
    raise OSError(28, "No space left on device")
tempfile.mkdtemp = mkdtemp
"""


@pytest.mark.parametrize("what", ["name", "lock", "fonts"])
def test_what_the_last_step_needs_is_tried_before_the_first(program, tmp_path, monkeypatch, what):
    """A name too long for the file system; a lock that cannot be had; no place for what matplotlib knows of fonts."""
    file = tmp_path / ("r" * 245 + ".csv" if what == "name" else "r.csv")
    if what == "lock":
        (tmp_path / "r.csv.lock").mkdir()
    if what == "fonts":
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
        monkeypatch.setenv("MPLCONFIGDIR", "/dev/null/x")
    done = program(*QUICK, "--results_file", file)
    said = {"name": "cannot be written", "lock": "but a folder or a device", "fonts": "figures cannot be drawn"}[what]
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, done.stdout, said in last, "Traceback" in done.stderr) == (2, "", True, False), done.stderr
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list((tmp_path / "metrics").glob("*.csv"))


def test_a_run_whose_figures_fail_is_finished(tmp_path, monkeypatch, capsys):
    def fail(*given):
        raise RuntimeError("no fonts\nand more")

    monkeypatch.setattr(plotting, "plot_run", fail)
    args = parse_args([*QUICK, "--out", str(tmp_path)])
    fedalg.main(args)
    said = capsys.readouterr()
    assert said.err.endswith(f"\nwarning: {run_name(args)}: its figures could not be drawn (no fonts)\n")
    assert said.out.endswith("_metrics.csv, no figures\n")
    assert len(results_csv.read_results(tmp_path / "results.csv")) == 1
    assert run_record.already_finished(args, run_name(args))


def test_out_is_the_folder_of_all_that_a_run_leaves(tmp_path):
    def leave(*flags, script="fedalg.py"):
        done = subprocess.run([sys.executable, ROOT / script, *flags], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return sorted({str(p.relative_to(tmp_path)).split("/")[1] for p in tmp_path.rglob("*") if p.is_file()})

    assert leave(*QUICK, "--out", "my runs") == ["checkpoints", "metrics", "plots", "results.csv", "results.csv.lock"]
    assert "final_plots" in leave("--out", "my runs", script="plotting.py")


def test_finished_means_that_everything_asked_for_is_there(program, tmp_path):
    assert program(*QUICK).returncode == 0
    weights = tmp_path / "w.pt"
    done = program(*QUICK, "--save_weights", weights)
    assert (done.returncode, "w.pt is not there" in done.stderr) == (2, True)
    assert program(*QUICK, "--save_weights", weights, "--overwrite").returncode == 0
    assert "already finished" in program(*QUICK, "--save_weights", weights).stdout
    done = program(*QUICK, "--seed", 1, "--save_weights", weights)
    assert (done.returncode, "is there already" in done.stderr) == (2, True)
    only(tmp_path, "metrics/*.csv").unlink()
    assert "test accuracy" in program(*QUICK).stdout


def test_a_result_that_cannot_be_recorded_does_not_count_as_finished(program, tmp_path):
    (tmp_path / "results.csv").write_text("my precious notes\n")
    done = program(*QUICK)
    assert (done.returncode, "is not a CSV of results" in done.stderr) == (2, True)
    assert not (tmp_path / "metrics").exists()
    (tmp_path / "results.csv").unlink()
    assert "test accuracy" in program(*QUICK).stdout


@pytest.mark.parametrize(
    ("flags", "message", "status"),
    [
        ("--dataset CIFAR10", "python data.py --download CIFAR10", 2),
        ("--dataset TinyImageNet", "python import_TIN.py", 2),
        ("--n_clients 1295", "1294 training samples are not enough for 1295 clients", 2),
        ("--dirichlet 0.01 --n_clients 500", "raise --dirichlet", 2),
        ("--norm batch --n_clients 1200", "too few for BatchNorm", 2),
        (f"--device {ABSENT}", f"--device {ABSENT}", 2),
        ("--lr 1e9 --n_epochs 3", "client", 1),
    ],
)
def test_what_cannot_run_ends_with_one_line_and_nothing_finished(program, tmp_path, flags, message, status):
    done = program(*QUICK, "--quiet", *flags.split())
    assert done.returncode == status, done.stderr
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not (tmp_path / "results.csv").exists()
    assert status == 1 or not (tmp_path / "metrics").exists()


def test_a_client_that_turns_nan_is_named_before_it_is_merged(experiment):
    exp = experiment()
    number = sample_clients(20, 0.2, 0, 1)[2]
    train = exp.algorithm.local_update

    def poisoned(start, client):
        update = train(start, client)
        if client.number == number:
            update.delta[123] = float("nan")
        return update

    exp.algorithm.local_update = poisoned
    before = exp.theta.clone()
    with pytest.raises(FloatingPointError, match=f"round 1, client {number}: the update is not finite"):
        rounds.train_round(exp, 1)
    assert torch.equal(exp.theta, before)


def test_a_loss_that_is_not_finite_is_named_even_if_the_update_is():
    zero, losses = torch.tensor(0.0), {5: torch.tensor(1.0), 6: torch.tensor(float("inf"))}
    clients = [Sent(number, 9, 99, 9, loss, torch.tensor(3), zero, 7) for number, loss in losses.items()]
    figures, faults = rounds.faults_of(2, clients)
    assert faults == {1: "round 2, client 6: the loss is not finite"}
    assert figures[0].tolist() == [1.0, 3.0]


# --------------------------------------------------------------------------------------------------------------------
# The loop


def test_the_seed_decides_the_split_the_start_and_the_clients(experiment):
    a, b, c = (experiment(seed=seed, dirichlet=0.5) for seed in (0, 0, 1))
    assert torch.equal(a.theta, b.theta)
    assert not torch.equal(a.theta, c.theta)
    split_of = {name: fedalg.partitions.partition_hash(exp.parts) for name, exp in (("a", a), ("b", b), ("c", c))}
    assert split_of["a"] == split_of["b"] != split_of["c"]


def test_augmentation_reaches_the_clients():
    g = torch.Generator().manual_seed(0)
    images = fedalg.data.Images(
        torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8, generator=g), torch.arange(40) % 10
    )
    splits = fedalg.data.Splits(images, images, images, 10, torch.full((3,), 0.5), torch.full((3,), 0.25))
    models = []
    for augment in ("none", "standard", "standard"):
        settings = {"dataset": "CIFAR10", "model_name": "cnn", "augment": augment, "n_client_epochs": 1, "n_clients": 1}
        exp = fedalg.assemble(resolve(settings), splits, [torch.arange(40)], torch.device("cpu"))
        rounds.train_round(exp, 1)
        models.append(exp.theta)
    assert not torch.equal(models[0], models[1])
    assert torch.equal(models[1], models[2])


def test_deterministic_asks_torch_for_it(experiment):
    try:
        experiment(deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_round_of_fedavg_is_the_weighted_mean_of_separately_trained_clients(experiment):
    exp = experiment(dirichlet=0.5, norm="batch", min_client_samples=2, shared_init=False)
    start = exp.theta.clone()
    numbers = sample_clients(20, 0.2, 0, 1)
    row = rounds.train_round(exp, 1)
    total = sum(len(exp.parts[n]) for n in numbers)
    mean = sum(exp.trainer.client(n, 1).train(start).clone() * (len(exp.parts[n]) / total) for n in numbers)
    assert torch.allclose(exp.theta, mean, atol=1e-5)
    assert row["clients"] == 4
    assert row["bytes_up"] == row["bytes_down"] == 4 * (32 + 4 * exp.model.layout.dim)
    uniform = experiment(dirichlet=0.5, norm="batch", min_client_samples=2, weighting="uniform")
    rounds.train_round(uniform, 1)
    mean = sum(exp.trainer.client(n, 1).train(start).clone() / 4 for n in numbers)
    assert torch.allclose(uniform.theta, mean, atol=1e-5)


def test_fedacg_merges_into_the_servers_model_and_not_into_the_lookahead(experiment):
    """Three rounds of the loop against whole client models: theta + m, m = lambda m + (mean - lookahead)."""
    exp = experiment(algorithm="fedacg", acg_momentum=0.5, weighting="uniform")
    theta, momentum = exp.theta.clone(), 0
    for round in (1, 2, 3):
        rounds.train_round(exp, round)
        lookahead = theta + 0.5 * momentum
        numbers = sample_clients(20, 0.2, 0, round)
        mean = sum(exp.trainer.client(n, round).train(lookahead).clone() for n in numbers) / 4
        momentum = 0.5 * momentum + mean - lookahead
        theta = theta + momentum
        # Rounding decides which of equal pixels max-pooling takes, so the two drift; the wrong formula is 50 % off.
        assert (exp.theta - theta).norm() < 0.05 * momentum.norm()


def test_centralised_training_is_one_client_with_everything_that_sends_nothing(experiment):
    exp = experiment(algorithm="centralised")
    start = exp.theta.clone()
    row = rounds.train_round(exp, 1)
    assert len(exp.parts) == 1
    assert len(exp.parts[0]) == len(exp.splits.train)
    assert torch.allclose(exp.theta, exp.trainer.client(0, 1).train(start), atol=1e-6)
    assert row["bytes_up"] == row["bytes_down"] == row["bytes_up_total"] == row["bytes_down_total"] == 0


def test_under_fedbn_norm_layers_stay_with_their_client(experiment):
    """Two rounds, all clients, against whole models: norm layers of the client's own, the rest averaged."""
    exp = experiment(algorithm="fedbn", norm="batch", n_clients=3, participation=1.0, weighting="uniform")
    own = torch.cat([torch.arange(*place) for place in exp.model.layout.norms])
    rest = torch.ones(exp.model.layout.dim, dtype=torch.bool).index_fill(0, own, False)
    theta, models = exp.theta.clone(), [exp.theta.clone()] * 3
    for round in (1, 2):
        rounds.train_round(exp, round)
        for number in range(3):
            start = torch.where(rest, theta, models[number])
            models[number] = exp.trainer.client(number, round).train(start).clone()
        before, theta = theta, torch.where(rest, sum(models) / 3, theta)
        # Rounding decides which of equal pixels max-pooling takes, so the two drift.
        assert (exp.theta - theta).norm() < 0.1 * (theta - before).norm()
        assert torch.equal(exp.theta[own], theta[own])
    for number in range(3):
        mine, expected = exp.algorithm.personal(exp.theta, number), torch.where(rest, theta, models[number])
        assert (mine - expected)[own].norm() < 0.1 * (models[0] - models[1])[own].norm()
        assert torch.equal(mine[rest], exp.theta[rest])
    mean = sum(exp.algorithm.norms.values()) / 3
    assert torch.allclose(evaluation.served(exp), exp.theta.index_copy(0, own, mean))
    again = fedalg.make_algorithm(exp.args, exp.model.layout)
    again.load(exp.algorithm.state())
    assert torch.equal(again.personal(exp.theta, 1), exp.algorithm.personal(exp.theta, 1))


def test_each_domain_is_judged_by_its_own_clients_model(experiment):
    """FedBN under feature shift, two clients a domain, against one domain at a time."""
    exp = experiment(algorithm="fedbn", norm="batch", shift="feature", n_clients=10, participation=1.0)
    rounds.train_round(exp, 1)
    loss, accuracy, (predictions, judged) = evaluation.evaluate(exp, exp.splits.test)
    exp.judged = predictions, judged
    losses, accuracies = [], {name: [] for name in exp.splits.domains}
    for number in range(10):
        (domain,) = exp.splits.train.domains[exp.parts[number]].unique().tolist()
        own = exp.splits.test[exp.splits.test.domains == domain]
        logits = evaluation.predict(exp, exp.algorithm.personal(exp.theta, number), own)
        losses.append(torch.nn.functional.cross_entropy(logits, own.labels).item())
        accuracies[exp.splits.domains[domain]].append((logits.argmax(1) == own.labels).float().mean().item())
    assert loss == pytest.approx(sum(losses) / 10, rel=1e-5)
    means = {name: sum(both) / 2 for name, both in accuracies.items()}
    assert accuracy == pytest.approx(sum(means.values()) / 5)
    assert run_record.domain_accuracy(exp) == pytest.approx(means)


def test_under_feature_shift_a_run_tells_the_accuracy_of_every_domain(program, tmp_path):
    done = program(*QUICK, "--shift", "feature", "--n_clients", 5)
    assert done.returncode == 0, done.stderr
    record = json.loads(only(tmp_path, "metrics/*.json").read_text())
    assert list(record["domain_accuracy"]) == ["clean", "inverted", "blurred", "rotated", "noisy"]
    mean = sum(record["domain_accuracy"].values()) / 5
    assert record["final"]["accuracy"] == pytest.approx(mean)
    assert len(record["partition"]["histograms"]) == 5
    refused = program(*QUICK, "--shift", "feature", "--n_clients", 7)
    assert refused.returncode == 2
    assert "--n_clients 7 is no multiple of the 5 domains" in refused.stderr


def test_without_norm_layers_fedbn_is_fedavg(experiment):
    both = []
    for algorithm in ("fedavg", "fedbn"):
        exp = experiment(algorithm=algorithm, norm="none")
        rounds.train_round(exp, 1)
        both.append(evaluation.served(exp))
    assert torch.equal(*both)


def test_every_client_has_the_samples_asked_for(experiment):
    sizes = [sorted(map(len, experiment(dirichlet=0.1, min_client_samples=n).parts)) for n in (1, 15)]
    assert sizes[0][0] < 15 <= sizes[1][0]


@pytest.mark.parametrize(
    "reduced",
    [
        {"algorithm": "fedprox", "prox_momentum": 0.0},
        {"algorithm": "fedacg", "acg_momentum": 0.0},
        {"algorithm": "las", "sparsity": 1.0},
    ],
    ids=lambda settings: settings["algorithm"],
)
def test_zero_strength_or_keeping_everything_trains_fedavgs_model(experiment, reduced):
    models = []
    for settings in ({}, reduced):
        exp = experiment(norm="batch", dirichlet=0.5, min_client_samples=2, **settings)
        for round in (1, 2, 3):
            rounds.train_round(exp, round)
        models.append(exp.theta)
    assert (models[0] - models[1]).norm() < 1e-3 * models[0].norm()


def test_las_sends_the_share_it_says_and_its_bytes(experiment, monkeypatch):
    sent, transmit = [], wire.transmit
    monkeypatch.setattr(wire, "transmit", lambda message, real: sent.append(message) or transmit(message, real))
    exp = experiment(algorithm="las", sparsity=0.1, shared_init=False)
    row = rounds.train_round(exp, 1)
    layout = exp.model.layout
    kept = sum(max(1, round(0.1 * size)) for size in layout.sizes)
    assert row["kept_share"] == pytest.approx(kept / layout.n_trainable)
    up = [m for m in sent if m.client >= 0]
    assert [(len(m.positions), m.round, m.client) for m in up] == [(kept, 1, n) for n in exp.traffic]
    assert row["bytes_up"] == sum(len(wire.encode(m)) for m in up)
    assert row["bytes_down"] == 4 * (32 + 4 * layout.dim)


LOCAL = {name for name, cls in ALGORITHMS.items() if "local" in cls.defaults}  # FedAvg on the wire
WIRES = [
    *({"algorithm": name} for name in sorted(set(ALGORITHMS) - {"centralised", *LOCAL})),
    {"algorithm": "las", "value_bits": 4, "downlink": "sparse", "residual": "client", "shared_init": False},
    {"algorithm": "fedavg", "value_bits": 8, "downlink": "dense", "shared_init": False},
    {"algorithm": "las", "value_bits": 4, "downlink": "individual", "down_sparsity": 0.1, "down_bits": 1},
    {"algorithm": "fedacg", "value_bits": 16, "downlink": "sparse", "down_sparsity": 0.3},
]


@pytest.mark.parametrize("settings", WIRES, ids=lambda settings: "-".join(map(str, settings.values())))
def test_real_bytes_change_nothing_but_the_time(experiment, settings):
    """Every upload and download is written and read, and every client's copy compared, in rounds that clients skip."""
    runs = []
    for way in ("size", "real"):
        exp = experiment(norm="batch", min_client_samples=2, n_epochs=7, quiet=True, wire=way, **settings)
        fedalg.run_rounds(exp, lambda row: None)
        runs.append(
            (exp.theta, [{k: v for k, v in row.items() if "seconds" not in k} for row in exp.rows], exp.traffic)
        )
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1:] == runs[1][1:]
    assert len({number for number, (rounds, *_) in exp.traffic.items() if rounds > 1}) > 3


def test_bytes_add_up_over_rounds_and_over_clients(program, tmp_path):
    assert program(*QUICK, "--algorithm", "las", "--n_epochs", 5).returncode == 0
    rows = metrics_of(tmp_path)
    record = json.loads(only(tmp_path, "metrics/*.json").read_text())
    (result,) = pd.read_csv(tmp_path / "results.csv").to_dict("records")
    for way in ("bytes_up", "bytes_down"):
        assert rows[way].cumsum().tolist() == rows[f"{way}_total"].tolist()
        assert sum(client[way] for client in record["traffic"]) == rows[way].sum() == result[way]
    assert sum(client["rounds"] for client in record["traffic"]) == 5 * 4
    of_client = [client["bytes_up"] + client["bytes_down"] for client in record["traffic"]]
    assert result["bytes_of_busiest_client"] == max(of_client)
    assert result["bytes_per_client"] == pytest.approx(sum(of_client) / len(of_client))


def test_what_the_server_merges_is_what_arrived(experiment, monkeypatch):
    exp = experiment(value_bits=4)
    merged = {}
    monkeypatch.setattr(exp.algorithm, "means", ())  # so that merge() gets all updates
    monkeypatch.setattr(exp.algorithm, "merge", lambda theta, got: merged.update(d=got.deltas.clone()) or theta)
    rounds.train_round(exp, 1)
    n = exp.model.layout.n_trainable
    blocks = merged["d"][0, : n - n % 1024].view(-1, 1024)
    assert max(len(set(block.abs().tolist())) for block in blocks) <= 8  # a sign and three bits


def test_a_sparse_downlink_is_judged_by_what_clients_hold(experiment):
    exp = experiment(downlink="sparse", down_sparsity=0.05)
    rounds.train_round(exp, 1)
    assert not torch.equal(exp.downlink.model, exp.theta)
    assert evaluation.served(exp) is exp.downlink.model
    ahead = experiment(algorithm="fedacg", acg_momentum=0.5, downlink="sparse", down_sparsity=1.0, down_bits=32)
    for round in (1, 2):
        rounds.train_round(ahead, round)
    assert torch.allclose(evaluation.served(ahead), ahead.theta, atol=1e-5)
    assert not torch.allclose(ahead.downlink.model, ahead.theta, atol=1e-3)
    other = experiment(algorithm="fedacg", acg_momentum=0.5)
    rounds.train_round(other, 1)
    rounds.train_round(other, 2)
    assert evaluation.served(other) is other.theta
    assert torch.equal(other.downlink.model, other.algorithm.broadcast(other.theta))


def test_what_a_client_keeps_is_what_did_not_arrive(experiment, monkeypatch):
    """In one bit a value: what is left and what the server merged are together what the client trained."""
    exp, arrived = experiment(algorithm="las", residual="client", value_bits=1), {}
    monkeypatch.setattr(exp.algorithm, "means", ())
    monkeypatch.setattr(exp.algorithm, "merge", lambda theta, got: arrived.update(d=got.deltas.clone()) or theta)
    start = exp.theta.clone()
    rounds.train_round(exp, 1)
    for row, (number, left) in zip(arrived["d"], exp.algorithm.memory.left.items(), strict=True):
        trained = exp.trainer.client(number, 1).train(start) - start
        assert torch.allclose(row + left, trained, atol=1e-6)


def test_who_sends_everything_masks_nothing(experiment, monkeypatch):
    exp, merged = experiment(algorithm="las"), {}
    update, first = exp.algorithm.local_update, sample_clients(20, 0.2, 0, 1)[0]

    def all_but_the_first(start, client):
        sent = update(start, client)
        return sent._replace(mask=None) if client.number == first else sent

    monkeypatch.setattr(exp.algorithm, "local_update", all_but_the_first)
    monkeypatch.setattr(exp.algorithm, "means", ())
    monkeypatch.setattr(exp.algorithm, "merge", lambda theta, got: merged.update(m=got.masks) or theta)
    row = rounds.train_round(exp, 1)
    assert merged["m"][0].all()
    assert not merged["m"][1].all()
    assert row["kept_share"] == pytest.approx(merged["m"].float().mean().item())


def test_settings_reach_the_wire(experiment, monkeypatch):
    settings = {
        "downlink": "sparse",
        "down_bits": 4,
        "down_sparsity": 0.3,
        "seed": 5,
        "wire": "real",
    }
    down = experiment(value_bits=8, **settings).downlink
    assert down.settings == wire.DownlinkSettings("sparse", 0.3, 4, shared_init=True, real=True, seed=5)
    assert experiment(value_bits=8, downlink="individual").downlink.settings.bits == 8
    keys, make = [], generator
    monkeypatch.setattr(randomness, "generator", lambda *key: keys.append(key) or make(*key))
    exp = experiment(value_bits=8)
    for round in (1, 2):
        rounds.train_round(exp, round)
    rounding = [key for key in keys if "rounding" in key]
    assert rounding == [(0, "rounding", r, n) for r in (1, 2) for n in sample_clients(20, 0.2, 0, r)]


@pytest.mark.parametrize("algorithm", sorted(set(ALGORITHMS) - {"centralised"}))
def test_the_initial_model_is_free_or_counted_for_every_algorithm_alike(experiment, algorithm):
    free, counted = (experiment(algorithm=algorithm, **how).downlink for how in ({}, {"shared_init": False}))
    assert free.download(0)[0] == 0
    assert counted.download(0)[0] == wire.dense_bytes(len(counted.model))


def test_no_preset_and_no_algorithm_has_a_convention_of_counting_of_its_own():
    """Or two series of one figure would count differently. What an algorithm sends is its own, what is free is not."""
    for cls in ALGORITHMS.values():
        for settings in (cls.defaults, *cls.presets.values()):
            assert not {"shared_init", "wire"} & set(settings)


@pytest.mark.parametrize("settings", [{"algorithm": "las"}, {"algorithm": "las", "preset": "compact"}], ids=str)
def test_sparse_messages_have_deterministic_kernels(experiment, settings):
    try:
        exp = experiment(deterministic=True, **settings)
        for round in (1, 2):
            rounds.train_round(exp, round)
    finally:
        torch.use_deterministic_algorithms(False)


def test_variances_that_vanish_stay_finite_in_few_bits(experiment):
    """Weight decay shuts channels down; their variances fall towards 0 from one round to the next."""
    settings = {"norm": "batch", "min_client_samples": 2, "weight_decay": 2.0, "lr": 0.02, "n_epochs": 4, "quiet": True}
    for way in ({"value_bits": 4}, {"downlink": "sparse", "down_bits": 8, "down_sparsity": 1.0}):
        exp = experiment(n_client_epochs=3, n_clients=4, participation=1.0, **{**settings, **way})
        fedalg.run_rounds(exp, lambda row: None)
        assert torch.isfinite(evaluation.served(exp)).all()


def test_local_steps_end_a_clients_round(experiment):
    exp = experiment(n_client_epochs=5, local_steps=3)
    client = exp.trainer.client(0, 1)
    client.train(exp.theta)
    assert client.seen == 3 * 16


def test_clients_are_sampled_by_round_and_seed_and_nothing_else():
    drawn = [sample_clients(20, 0.2, 0, r) for r in range(1, 101)]
    assert all(len(set(numbers)) == 4 and numbers == sorted(numbers) for numbers in drawn)
    assert set().union(*drawn) == set(range(20))
    assert drawn == [sample_clients(20, 0.2, 0, r) for r in range(1, 101)]
    assert drawn != [sample_clients(20, 0.2, 1, r) for r in range(1, 101)]
    assert sample_clients(20, 0.001, 0, 1) == sample_clients(20, 0.05, 0, 1)
    assert sample_clients(5, 1.0, 0, 1) == [0, 1, 2, 3, 4]
    assert len(sample_clients(10, 0.25, 0, 1)) == len(sample_clients(10, 0.35, 0, 1)) - 1


def test_evaluation_is_of_the_servers_model_in_evaluation_mode(experiment):
    exp = experiment(norm="batch")
    rounds.train_round(exp, 1)
    before = exp.theta.clone()
    loss, accuracy, (predictions, _) = evaluation.evaluate(exp, exp.splits.test)
    module = fedalg.build_module(exp.args, exp.splits)
    flat = fedalg.models.FlatModel(module)
    flat.load(before)
    logits = module.eval()(exp.splits.normalise(exp.splits.test.images))
    assert torch.equal(predictions, logits.argmax(1))
    assert accuracy == (logits.argmax(1) == exp.splits.test.labels).double().mean().item()
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, exp.splits.test.labels).item(), rel=1e-4)
    assert torch.equal(exp.theta, before)
    assert torch.equal(exp.model.vector, before)  # evaluating moves no running statistics


def test_eval_every_and_eval_train(experiment):
    exp, rows = experiment(n_epochs=5, eval_every=2, eval_train=True, quiet=True), []
    fedalg.run_rounds(exp, rows.append)
    assert [row["epoch"] for row in rows if "test_accs" in row] == [2, 4, 5]
    for part in ("train", "val", "test"):
        loss, accuracy, (predictions, _) = evaluation.evaluate(exp, getattr(exp.splits, part))
        assert (rows[-1][f"{part}_losses"], rows[-1][f"{part}_accs"]) == (loss, accuracy)
    assert torch.equal(exp.judged[0], predictions)
    exp.args.precision = "bf16"
    assert 0 < abs(evaluation.evaluate(exp, exp.splits.test)[0] - loss) < 0.1 * loss


def test_final_figures_by_hand(experiment):
    exp = experiment()
    accuracies = [0.1 * i for i in range(10)] + [0.5, 0.7]
    exp.rows = [
        {
            "epoch": i + 1,
            "test_accs": a,
            "val_accs": 1 - abs(i - 4),
            "bytes_up": 10,
            "bytes_down": 30,
            "train_seconds": 2.0,
        }
        for i, a in enumerate(accuracies)
    ]
    exp.traffic = {3: [1, 5, 15], 8: [2, 10, 30]}
    exp.judged = exp.splits.test.labels.clone(), exp.splits.test
    exp.judged[0][exp.splits.test.labels == 3] = 4
    final = run_record.final_figures(exp)
    assert final["accuracy"] == 0.7
    assert final["accuracy_last10"] == pytest.approx(sum(accuracies[2:]) / 10)
    assert (final["best_val_round"], final["accuracy_best_val"]) == (5, accuracies[4])
    assert (final["communication"], final["bytes_up"], final["train_time"]) == (40, 120, 2.0)
    assert (final["bytes_per_client"], final["bytes_of_busiest_client"]) == (30, 40)
    n3, n4 = (int((exp.splits.test.labels == c).sum()) for c in (3, 4))
    assert final["recall"] == pytest.approx(0.9)
    assert final["precision"] == pytest.approx((8 + n4 / (n3 + n4)) / 10)
    assert final["f1"] == pytest.approx((8 + 2 * n4 / (n3 + 2 * n4)) / 10)


@pytest.mark.parametrize("settings", [{}, {"localiser": "learned", "graft_epochs": 3, "mask_scope": "global"}], ids=str)
def test_las_learned_or_not_trains(experiment, settings):
    exp = experiment(algorithm="las", n_epochs=8, n_client_epochs=5, quiet=True, **settings)
    fedalg.run_rounds(exp, lambda row: None)
    assert exp.rows[-1]["test_accs"] > 0.9
    assert exp.rows[-1]["kept_share"] < 0.5


def test_the_compact_preset_learns_the_digits_with_a_hundredth_of_the_bytes_up(experiment):
    exp = experiment(
        algorithm="las", preset="compact", n_epochs=30, n_client_epochs=5, batch_size=16, lr=0.05, quiet=True
    )
    fedalg.run_rounds(exp, lambda row: None)
    dense = sum(row["clients"] for row in exp.rows) * wire.dense_bytes(exp.model.layout.dim)
    assert exp.rows[-1]["test_accs"] >= 0.94
    assert dense > 100 * exp.rows[-1]["bytes_up_total"]
    assert dense > 25 * exp.rows[-1]["bytes_down_total"]


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_every_algorithm_learns_the_digits(experiment, algorithm):
    """The quick version of `make run`: IID, the same settings, 20 of its 30 rounds."""
    settings = {"n_epochs": 20, "n_client_epochs": 5, "batch_size": 16, "lr": 0.05, "quiet": True}
    if algorithm == "centralised":
        settings |= {"lr": 0.02, "n_epochs": 4}  # so many steps on end diverge with 0.05
    if algorithm in ("lss", "soups", "diwa"):
        settings |= {"n_verts": 2, "soup_epochs": 5}
    if algorithm == "lss":
        settings |= {"aff_coeff": 0.1, "div_coeff": 0.1}  # those of the paper are for a trained start
    exp = experiment(algorithm=algorithm, **settings)
    fedalg.run_rounds(exp, lambda row: None)
    assert exp.rows[-1]["test_accs"] >= 0.95


def test_saved_weights_start_another_run_where_the_first_ended(program, tmp_path):
    assert program(*QUICK, "--norm", "batch", "--save_weights", tmp_path / "w.pt").returncode == 0
    args = resolve({"init_weights": str(tmp_path / "w.pt"), "norm": "batch", "device": "cpu"})
    exp = fedalg.prepare(args)
    _, accuracy, _ = evaluation.evaluate(exp, exp.splits.test)
    assert accuracy == pytest.approx(metrics_of(tmp_path)["test_accs"].iloc[-1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_trains_what_a_cpu_trains(experiment):
    models = []
    for device in ("cpu", "cuda"):
        exp = experiment(device=device, norm="batch", min_client_samples=2)
        rounds.train_round(exp, 1)
        models.append(exp.theta.cpu())
    assert (models[0] - models[1]).norm() < 1e-2 * models[0].norm()


def test_what_is_predicted_does_not_hang_on_how_many_images_are_taken_at_a_time(experiment, monkeypatch):
    exp = experiment()
    at_once = evaluation.predict(exp, exp.theta, exp.splits.test)
    monkeypatch.setattr(batches, "batch_size", lambda images: 7)
    assert torch.allclose(evaluation.predict(exp, exp.theta, exp.splits.test), at_once, atol=1e-5)
    assert len(at_once) == len(exp.splits.test)


@pytest.mark.parametrize(("side", "n"), [(32, 2048), (64, 512), (4096, 1)])
def test_a_gpu_evaluates_as_many_pixels_at_a_time_whatever_their_images(side, n):
    images = datasets.Images(torch.empty(9, 3, side, side, device="meta"), torch.empty(9, device="meta"))
    assert datasets.batch_size(images) == n


@pytest.mark.parametrize(("side", "n"), [(8, 512), (32, 128), (64, 32), (512, 1)])
@pytest.mark.parametrize("threads", [1, 64])
def test_a_cpu_evaluates_as_many_pixels_at_a_time_however_many_threads_it_has(side, n, threads, monkeypatch):
    images = datasets.Images(torch.empty(1, 3, side, side), torch.empty(1))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert datasets.batch_size(images) == n
