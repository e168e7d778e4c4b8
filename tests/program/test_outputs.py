"""The program as a user runs it: what it leaves, what it says, and what it refuses."""

import json

import pandas as pd
import pytest
import torch
from conftest import evaluate

import fedalg
from fedmerge import locks
from fedmerge.config.parser import parse_args
from fedmerge.config.resolve import resolve
from fedmerge.config.run_name import run_name
from fedmerge.reporting import outputs, results_csv, run_figures, run_record
from fedmerge.simulation.experiment import prepare

QUICK = ["--dataset=DIGITS", "--n_epochs=2", "--n_client_epochs=1", "--batch_size=16", "--device=cpu"]


ABSENT = "cuda" if torch.backends.mps.is_available() else "mps"  # no machine has both


TIMES = ["train_seconds", "eval_seconds"]


def only(folder, pattern):
    (path,) = folder.glob(pattern)
    return path


def metrics_of(folder):
    return pd.read_csv(only(folder, "metrics/*.csv"))


DRAWN = pytest.param("fedavg", marks=pytest.mark.figures)


@pytest.mark.parametrize("algorithm", [DRAWN, "centralised", "fedbn", "las", "soups"])
@pytest.mark.slow
def test_a_run_leaves_all_its_outputs(tmp_path, monkeypatch, capsys, algorithm):
    """In this process: others in this file start one for it."""
    monkeypatch.chdir(tmp_path)
    level = "iid" if algorithm == "centralised" else "0.5"
    pool = algorithm == "soups"
    flags = [flag.replace("n_client_epochs", "soup_epochs") if pool else flag for flag in QUICK]
    words = [f"--algorithm={algorithm}", f"--dirichlet={level}", "--seed=3", *flags]
    assert fedalg.program(parse_args(words)) == 0
    few = ("batch_size=16", "soup_epochs=1") if pool else ("n_client_epochs=1", "batch_size=16")
    name = "_".join([algorithm, "DIGITS", level, "3", "n_epochs=2", *few])
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    kinds = ("accuracy_curves", "loss_curves", "partition") if algorithm == "fedavg" else ()  # the only one that draws
    plots = {f"plots/{name}_{kind}.png" for kind in kinds}
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
    assert "round 2/2: test acc" in capsys.readouterr().out  # not on a terminal: a line a round


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
    done = program(*QUICK, "--results_file", file, fresh=what == "fonts")
    said = {"name": "cannot be written", "lock": "but a folder or a device", "fonts": "figures cannot be drawn"}[what]
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, done.stdout, said in last, "Traceback" in done.stderr) == (2, "", True, False), done.stderr
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list((tmp_path / "metrics").glob("*.csv"))


def test_a_run_whose_figures_fail_is_finished(tmp_path, monkeypatch, capsys):
    def fail(*given):
        raise RuntimeError("no fonts\nand more")

    monkeypatch.setattr(run_figures, "plot_run", fail)
    args = parse_args([*QUICK, "--out", str(tmp_path)])
    fedalg.main(args)
    said = capsys.readouterr()
    assert said.err.endswith(f"\nwarning: {run_name(args)}: its figures could not be drawn (no fonts)\n")
    assert said.out.endswith("_metrics.csv, no figures\n")
    assert len(results_csv.read_results(tmp_path / "results.csv")) == 1
    assert run_record.already_finished(args, run_name(args))


@pytest.mark.slow
@pytest.mark.figures
def test_out_is_the_folder_of_all_that_a_run_leaves(tmp_path, program, monkeypatch):
    def left():
        return sorted({str(p.relative_to(tmp_path)).split("/")[1] for p in tmp_path.rglob("*") if p.is_file()})

    monkeypatch.chdir(tmp_path)
    assert fedalg.program(parse_args([*QUICK, "--out", "my runs"])) == 0
    assert left() == ["checkpoints", "metrics", "plots", "results.csv", "results.csv.lock"]
    assert program("--out", "my runs", script="plotting.py").returncode == 0
    assert "final_plots" in left()


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


def test_saved_weights_start_another_run_where_the_first_ended(program, tmp_path):
    assert program(*QUICK, "--norm", "batch", "--save_weights", tmp_path / "w.pt").returncode == 0
    args = resolve({"init_weights": str(tmp_path / "w.pt"), "norm": "batch", "device": "cpu"})
    run = prepare(args)
    _, accuracy, _ = evaluate(run, run.splits.test)
    assert accuracy == pytest.approx(metrics_of(tmp_path)["test_accs"].iloc[-1])
