"""Splits made by hand, and clients without samples, from the command line to the figures."""

import csv
import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, evaluate, train_round
from PIL import Image

import data
import fedalg
import plotting
from fedmerge import datasets, partitions, saving
from fedmerge.config.parser import checked_settings, parse_args
from fedmerge.config.run_name import differing_settings, run_name, settings_of
from fedmerge.errors import InputError
from fedmerge.reporting import results_csv, run_record, run_status
from fedmerge.simulation.experiment import prepare
from fedmerge.simulation.sampling import cohort_size, sample_clients

QUICK = ["--dataset=DIGITS", "--n_epochs=1", "--n_client_epochs=1", "--batch_size=16", "--device=cpu"]


@pytest.fixture
def patho(tmp_path, monkeypatch):
    """patho_0.json and patho_1.json in the current folder, for DIGITS and its seeds: five clients, two classes each."""
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        labels = datasets.load_dataset("DIGITS", ".", seed).train.labels
        clients = [((labels == 2 * c) | (labels == 2 * c + 1)).nonzero().flatten().tolist() for c in range(5)]
        Path(f"patho_{seed}.json").write_text(json.dumps({"clients": clients}))
        data.main(["--stamp", "patho_{seed}.json", "--dataset", "DIGITS", "--seed", str(seed)])
    return tmp_path


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """A function of flags -> what fedalg.py with these says on standard output and error, run in the test's folder.

    A process of its own, as `program` has it, would take most of its time to start.
    """
    monkeypatch.chdir(tmp_path)

    def go(*flags):
        capsys.readouterr()
        fedalg.main(parse_args([str(flag) for flag in flags]))
        return capsys.readouterr()

    return go


def change(path, **content):
    """Change the content of a JSON file; None takes it out."""
    whole = json.loads(Path(path).read_text()) | content
    Path(path).write_text(json.dumps({name: value for name, value in whole.items() if value is not None}))


def name_of(*flags):
    return run_name(parse_args([*QUICK, "--n_clients=5", *flags]))


def refusal(capsys, *flags):
    """What the command line is refused with, in one line."""
    with pytest.raises(SystemExit) as caught:
        parse_args([*QUICK, "--n_clients=5", *flags])
    said = capsys.readouterr().err
    assert (caught.value.code, said.count("\n")) == (2, 1)
    return said


# --------------------------------------------------------------------------------------------------------------------
# What a run on one is called


@pytest.mark.slow
def test_a_run_on_a_split_made_by_hand_is_named_after_it_everywhere(run, patho):
    for seed in (0, 1):
        said = run(*QUICK, "--n_clients=5", "--partition_file=patho_{seed}.json", "--seed", seed)
        sizes = r"5 clients, samples \d+/\d+/\d+, classes 2/2/2 \(min/median/max\)"
        assert re.fullmatch(f"split patho: {sizes}; cnn, 188,810 weights, norm none, augmentation none\n", said.err)
    files = sorted(patho.glob("metrics/*.json"))
    assert [re.match(r"fedavg_DIGITS_patho_\d_", file.name)[0][-2] for file in files] == ["0", "1"]
    assert all(re.search(r"_partition_file=patho-\d-[0-9a-f]{8}(_|$)", file.stem) for file in files)
    assert not any("iid" in path.name for path in patho.rglob("*"))
    record = json.loads(files[0].read_text())
    assert record["partition"]["name"] == "patho"
    assert record["settings"]["dirichlet"] is None
    assert record["settings"]["partition_file"] == "patho_{seed}.json"
    with open(patho / "results.csv", newline="") as file:
        assert [row["Dirichlet"] for row in csv.DictReader(file)] == ["patho", "patho"]
    assert "already finished" in run(*QUICK, "--n_clients=5", "--partition_file=patho_{seed}.json").out
    assert not run(*QUICK, "--n_clients=5", "--partition_file=patho_{seed}.json", "--quiet", "--overwrite").err
    assert results_csv.rebuild_results(patho / "metrics", patho / "again.csv") == 2
    again, first = ((patho / name).read_text().splitlines() for name in ("again.csv", "results.csv"))
    assert sorted(again) == sorted(first)
    assert plotting.main(["--csv_dir", str(patho / "metrics"), "--output_dir", str(patho / "out")]) == 0
    table = pd.read_csv(patho / "out" / "DIGITS_summary.csv")
    assert table[["split", "method", "seeds"]].to_numpy().tolist() == [["patho", "FedAvg", 2]]
    assert (patho / "out" / "DIGITS_split-patho_comparison.png").exists()


def test_a_split_has_the_name_in_its_file_or_that_of_the_file_without_the_seed(patho, capsys):
    assert name_of("--partition_file=patho_{seed}.json").startswith("fedavg_DIGITS_patho_0_")
    assert name_of("--partition_file=patho_0.json").startswith("fedavg_DIGITS_patho-0_0_")
    change("patho_1.json", name="Two / classes")
    assert name_of("--partition_file=patho_{seed}.json", "--seed=1").startswith("fedavg_DIGITS_Two---classes_1_")
    Path("zipf").mkdir()
    Path("patho_0.json").rename("zipf/0.json")
    first = name_of("--partition_file=zipf/{seed}.json")
    assert first.startswith("fedavg_DIGITS_zipf_0_")
    change("zipf/0.json", note="another content")
    assert name_of("--partition_file=zipf/{seed}.json") != first
    for name in ("iid", "0.5", "nan", "IID", "x" * 61):
        change("zipf/0.json", name=name)
        with pytest.raises(InputError, match=r"zipf/0.json: its split cannot be called .* write another \"name\""):
            name_of("--partition_file=zipf/{seed}.json")


def test_a_name_in_a_record_stays_within_the_folder():
    record = {"settings": {"dirichlet": None}, "partition": {"name": "../../etc/x$"}}
    assert results_csv.split_name(record) == "..-..-etc-x-"
    assert results_csv.split_name({"settings": {"dirichlet": 0.5}}) == 0.5


def test_flags_that_a_split_made_by_hand_leaves_no_effect_are_refused(patho, capsys):
    for level in ("0.1", "iid"):
        said = refusal(capsys, "--partition_file=patho_0.json", "--dirichlet", level)
        assert "--dirichlet has no effect with --partition_file patho_0.json" in said
    Path("flags.txt").write_text("--dirichlet 0.1\n")  # shared with runs that draw their split
    args = parse_args([*QUICK, "--config=flags.txt", "--partition_file=patho_0.json", "--n_clients=5"])
    assert args.dirichlet is None
    settings = json.loads(json.dumps(settings_of(args)))
    assert differing_settings(args, settings) == []
    assert checked_settings(settings, "clients.json").n_clients == 5
    state, name = run_status.state_of([*QUICK, "--n_clients=5", "--partition_file=patho_{seed}.json"])
    assert (state, name.startswith("fedavg_DIGITS_patho_0_")) == ("not started", True)


# --------------------------------------------------------------------------------------------------------------------
# Which data it belongs to


def test_a_split_of_another_seed_or_dataset_is_refused(patho, capsys):
    said = refusal(capsys, "--partition_file=patho_0.json", "--seed=1")
    assert "patho_0.json: was not made for --seed 1 (but 0)" in said
    said = refusal(capsys, "--partition_file=patho_0.json", "--dataset=DIGITSA", "--shift=feature")
    assert "--dataset DIGITSA (but DIGITS), --shift feature (but label)" in said
    change("patho_0.json", made_for=None)
    args = parse_args([*QUICK, "--n_clients=5", "--partition_file=patho_0.json", "--seed=1"])
    with pytest.raises(InputError, match="was made for other training data"):
        prepare(args)


def test_a_file_without_the_hash_of_its_labels_is_refused_with_the_command_that_adds_it(patho, capsys):
    change("patho_1.json", labels_sha256=None, made_for=None)
    said = refusal(capsys, "--partition_file=patho_{seed}.json", "--seed=1")
    command = re.search("'(python data.py --stamp .*)'", said)[1]
    assert command == "python data.py --stamp patho_1.json --dataset DIGITS --seed 1"
    data.main(command.split()[2:])
    printed = capsys.readouterr().out
    assert "patho_1.json, for --dataset DIGITS --seed 1 --shift label: 5 clients" in printed
    assert "classes 2/2/2" in printed
    assert name_of("--partition_file=patho_{seed}.json", "--seed=1")


def test_a_drawn_file_that_lost_its_hash_gets_it_back(patho, capsys):
    flags = [*QUICK, "--dirichlet=0.5", "--partition_file=d.json"]
    prepare(parse_args(flags))
    whole = json.loads(Path("d.json").read_text())
    change("d.json", labels_sha256=None)
    assert "data.py --stamp d.json --dataset DIGITS" in refusal(capsys, "--n_clients=20", *flags[-2:])
    data.main(["--stamp", "d.json", "--dataset", "DIGITS", "--seed", "0"])
    stamped = json.loads(Path("d.json").read_text())
    assert stamped | whole == stamped
    prepare(parse_args(flags))


def test_a_file_that_changes_as_the_run_begins_is_not_used(patho):
    drawn = parse_args([*QUICK, "--n_clients=5", "--partition_file=new.json"])
    by_hand = parse_args([*QUICK, "--n_clients=5", "--partition_file=patho_0.json"])
    Path("patho_0.json").rename("new.json")
    for args in (drawn, by_hand):
        with pytest.raises(InputError, match=r"\.json: was changed or taken away as the run began"):
            prepare(args)


def test_a_drawn_split_is_kept_for_each_seed_by_the_same_command(patho):
    for seed in (0, 1):
        run = prepare(parse_args([*QUICK, "--dirichlet=0.5", "--partition_file=d_{seed}.json", f"--seed={seed}"]))
        assert partitions.partition_file_hash(f"d_{seed}.json") == partitions.partition_hash(run.clients.parts)
        assert (run.split, "partition_file" in run.name) == ("0.5", False)
    assert run_record.record(run, finished=False)["partition"]["name"] == "0.5"


def test_labels_and_domains_can_be_had(patho, capsys):
    splits = datasets.load_dataset("DIGITS", ".", 1)
    data.main(["--labels", "DIGITS", "--seed", "1", "--output", "labels.csv"])
    rows = list(csv.DictReader(io.StringIO(Path("labels.csv").read_text())))
    assert [(int(row["position"]), int(row["label"])) for row in rows] == list(enumerate(splits.train.labels.tolist()))
    capsys.readouterr()
    data.main(["--labels", "DIGITS", "--shift", "feature"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert (len(rows), rows[0]["domain"], rows[-1]["domain"]) == (5 * 1294, "clean", "noisy")
    for wrong in (["--stamp", "none.json", "--dataset", "DIGITS"], ["--stamp", "x.json"], ["--labels", "NONE"]):
        with pytest.raises(SystemExit) as caught:
            data.main(wrong)
        said = capsys.readouterr().err
        assert (caught.value.code, said.count("\n"), said[:15]) == (2, 1, "data.py: error:")


def test_the_example_of_the_readme_makes_a_split_of_two_classes_a_client(run, monkeypatch):
    """The lines of its loop, here without a shell."""
    example = (
        r"```sh\nfor seed in 0 1; do\npython (data\.py --labels .*)\npython - \$seed <<'END'\n([^`]*)END\n"
        r"python (data\.py .*)\npython fedalg\.py (.*)\ndone\n```"
    )
    parts = re.search(example, (ROOT / "docs" / "splits.md").read_text()).groups()
    for seed in ("0", "1"):
        labels, code, stamp, flags = (part.replace("$seed", seed) for part in parts)
        data.main(shlex.split(labels, comments=True)[1:])
        monkeypatch.setattr("sys.argv", ["-", seed])
        exec(code, {})
        data.main(shlex.split(stamp, comments=True)[1:])
        said = run(*shlex.split(flags), "--n_epochs=1", "--device=cpu")
        assert re.match(
            r"split two-classes: 20 clients, samples 6\d/6\d/6\d, classes 2/2/2 \(min/median/max\); ", said.err
        )


# --------------------------------------------------------------------------------------------------------------------
# Samples that nobody holds, and clients that hold none


def test_a_run_on_a_part_of_the_samples_says_how_many(patho, experiment):
    change("patho_0.json", unused=True, clients=[[0, 1], [2, 3, 4], [5, 6]])
    run = experiment(partition_file="patho_0.json", n_clients=3)
    partition = run_record.record(run, finished=False)["partition"]
    assert (partition["samples"], sum(map(sum, partition["histograms"]))) == (7, 7)


def test_clients_without_samples_never_take_part(experiment):
    run = experiment(dirichlet=0.05, n_clients=60, participation=0.5, min_client_samples=0, norm="none")
    assert run.server.empty == [n for n, part in enumerate(run.clients.parts) if not len(part)]
    assert len(run.server.empty) > 5
    for round in range(1, 6):
        numbers = run.server.participants(round)[0]
        assert len(numbers) == cohort_size(60 - len(run.server.empty), 0.5)
        assert not set(numbers) & set(run.server.empty)
    whole = set(range(60)) - set(run.server.empty)
    assert set(sample_clients(60, 1.0, 0, 1, run.server.empty)) == whole
    assert sample_clients(60, 0.5, 0, 1, []) == sample_clients(60, 0.5, 0, 1)
    row = train_round(run, 1)
    assert np.isfinite(row["train_losses"])


def test_one_client_that_holds_all_trains_every_round(patho, experiment):
    change("patho_0.json", clients=[[], [], list(range(1294)), [], []])
    run = experiment(partition_file="patho_0.json", n_clients=5, min_client_samples=0, norm="batch")
    assert [run.server.participants(round) for round in (1, 2)] == [([2], [])] * 2
    assert train_round(run, 1)["clients"] == 1


def test_batchnorm_needs_two_samples_of_those_who_have_any(patho, experiment):
    settings = {"partition_file": "patho_0.json", "n_clients": 3, "min_client_samples": 0, "norm": "batch"}
    change("patho_0.json", unused=True, clients=[[0, 1], [], [5, 6]])
    assert experiment(**settings).server.empty == [1]
    change("patho_0.json", clients=[[0, 1], [], [5]])
    with pytest.raises(InputError, match="a client has one sample"):
        experiment(**settings)


@pytest.mark.slow
@pytest.mark.figures
def test_a_run_with_clients_without_samples_leaves_all_it_should(run, patho):
    change("patho_0.json", unused=True, clients=[list(range(60)), [], list(range(60, 200)), []])
    flags = [*QUICK, "--n_clients=4", "--participation=1", "--min_client_samples=0", "--partition_file=patho_0.json"]
    said = run(*flags, "--save_clients=parts")
    assert "2 clients without samples, not counted, 1094 of 1294 samples unused" in said.err
    record = json.loads(next(iter(patho.glob("metrics/*.json"))).read_text())
    assert [sum(row) for row in record["partition"]["histograms"]] == [60, 0, 140, 0]
    before = Path("parts/accuracy.csv").read_text()
    assert [row.split(",")[:2] for row in before.splitlines()[1:]] == [["0", "60"], ["2", "140"]]
    assert sorted(path.name for path in Path("parts").glob("client_*")) == [
        "client_0000.payload",
        "client_0002.payload",
    ]
    run("--evaluate_clients=parts")
    assert Path("parts/accuracy.csv").read_text() == before
    assert (patho / "plots" / f"{record['run']}_partition.png").stat().st_size > 5000


def test_personal_models_are_judged_where_there_is_something_to_judge(experiment):
    """Of a client without samples no domain is known, and a small validation set may lack one."""
    settings = {"algorithm": "fedbn", "shift": "feature", "norm": "batch", "n_clients": 10, "dirichlet": 0.05}
    run = experiment(**settings, min_client_samples=2)
    run.clients.parts[3] = torch.empty(0, dtype=torch.int64)  # of domain 3, as is 8
    test = run.splits.test
    whole = evaluate(run, test)
    own = run.evaluator.own_images(run.clients.parts, test)
    assert (len(own), 3 in own) == (9, False)
    few = test[test.domains != 4]
    loss, _, judged = evaluate(run, few)
    assert np.isfinite(loss)
    assert len(judged[1]) < len(whole[2][1])
    run.history.judged = judged
    assert list(run_record.domain_accuracy(run)) == ["clean", "inverted", "blurred", "rotated"]
    saving.write_json(Path(run.settings.metrics_dir) / "x.json", run_record.domain_accuracy(run))  # no NaN
    run.clients.parts = [part if n % 5 == 4 else part[:0] for n, part in enumerate(run.clients.parts)]
    assert np.isfinite(evaluate(run, few)[0])  # nobody's domain: the model that all share


@pytest.mark.parametrize("algorithm", ["fedavg", "fedbn"])
def test_a_domain_without_a_test_image_is_refused_before_any_work(run, tmp_path, algorithm):
    rng = np.random.default_rng(0)
    for domain, n in (("photo", 8), ("sketch", 1)):
        for name in "xyzw":
            folder = tmp_path / "set" / domain / name
            folder.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    flags = ["--dataset=set", "--data_root=.", "--image_size=8", "--model_name=cnn", "--n_clients=2", "--n_epochs=1"]
    flags += ["--algorithm", algorithm, "--augment=none", "--device=cpu"]
    with pytest.raises(InputError, match="the domain sketch of set has no test image: a class needs two images"):
        run(*flags, "--shift=feature")
    assert not (tmp_path / "metrics").exists()
    run(*flags)
    record = json.loads(next(iter(tmp_path.glob("metrics/*.json"))).read_text())
    assert list(record["domain_accuracy"]) == ["photo"]
