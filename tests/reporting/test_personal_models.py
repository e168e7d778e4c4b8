"""Personal models: by hand, as a user saves and evaluates them, and from files that are damaged or made up."""

import contextlib
import json
import shutil
import signal
from dataclasses import replace

import numpy as np
import pandas as pd
import processes
import pytest
import torch
from conftest import QUICK, ROOT, train_round, train_rounds
from PIL import Image

import fedalg
from fedmerge import datasets, locks, provenance, registry, wire
from fedmerge.checkpoint.policy import Interrupted
from fedmerge.config.parser import checked_settings
from fedmerge.config.resolve import resolve
from fedmerge.config.run_name import run_name, settings_of
from fedmerge.errors import InputError
from fedmerge.reporting import outputs, personal_models, run_record
from fedmerge.reporting.task_mask_parts import TaskMasks, with_part
from fedmerge.simulation import personal_parts

pytestmark = pytest.mark.slow

TRAIN = ["--dataset=DIGITS", "--dirichlet=0.3", "--n_epochs=2", "--n_client_epochs=3", "--batch_size=16", "--lr=0.02"]
FEW = [*TRAIN, "--n_clients=5", "--participation=0.4", "--device=cpu", "--quiet"]


def test_accuracy_on_a_clients_own_mix_of_labels_by_hand():
    """Class 0: 1 of 2 right, class 1: 3 of 3, class 2: 0 of 1; the client holds 3 of class 0 and 1 of class 2."""
    labels, predictions = torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([0, 1, 1, 1, 1, 0])
    assert personal_parts.own_accuracy(predictions, labels, [3, 0, 1]) == pytest.approx((3 * 0.5 + 1 * 0) / 4)
    assert personal_parts.own_accuracy(predictions, labels, [0, 9, 0]) == 1
    assert personal_parts.own_accuracy(predictions, labels, [1, 0, 0, 5]) == 0.5  # no test image of class 3


def test_the_summary_by_hand():
    rows = [
        dict(zip(personal_parts.COLUMNS, values, strict=True))
        for values in ((0, 9, 100, 0.2, 0.6, 0.8), (1, 9, 300, 0.4, 0.8, 1))
    ]
    found = personal_parts.summary(rows, 992)
    assert found == {
        "shared_accuracy": pytest.approx(0.3),
        "personal_accuracy": pytest.approx(0.7),
        "full_accuracy": pytest.approx(0.9),
        "client_bytes": 400,
        "times_smaller": 2 * 4000 / 400,
        "times_smaller_with_shared": 2 * 4000 / 4400,
    }
    assert personal_parts.summary(rows, 992, 2)["times_smaller_with_shared"] == 2 * 4000 / 8400


@pytest.fixture(scope="module")
def saved(tmp_path_factory, spawn):
    """A folder of --save_clients, of five clients on the digits that keep 10 %."""
    folder = tmp_path_factory.mktemp("saved")
    flags = ["--algorithm=las", "--sparsity=0.1", "--value_bits=4", *FEW]
    done = processes.finished(spawn, [str(ROOT / "fedalg.py"), *flags, "--save_clients", "parts"], folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def parts(saved, tmp_path):
    """A copy of its parts, to spoil."""
    return shutil.copytree(saved / "parts", tmp_path / "parts")


def test_what_was_saved_is_judged_alike_from_the_files_alone(saved, program, parts):
    (result,) = pd.read_csv(saved / "results.csv").to_dict("records")
    before = pd.read_csv(parts / "accuracy.csv")
    (parts / "accuracy.csv").unlink()
    (parts / "accuracy.png").unlink()
    done = program("--evaluate_clients", parts)
    assert done.returncode == 0, done.stderr
    assert (parts / "accuracy.png").stat().st_size > 5000
    rows = pd.read_csv(parts / "accuracy.csv")
    assert rows.equals(before)
    assert list(rows) == personal_parts.COLUMNS
    assert rows["client"].tolist() == [0, 1, 2, 3, 4]
    assert rows["samples"].sum() == 1294
    assert rows["bytes"].tolist() == [(parts / f"client_000{i}.payload").stat().st_size for i in range(5)]
    for column in ("shared_accuracy", "personal_accuracy", "full_accuracy"):
        assert result[column] == pytest.approx(rows[column].mean())
    assert result["client_bytes"] == rows["bytes"].sum()
    assert result["times_smaller"] > 30
    assert rows["personal_accuracy"].mean() > rows["shared_accuracy"].mean() + 0.1
    assert str(parts) in done.stdout


def test_parts_hold_the_share_and_their_client(parts):
    index = json.loads((parts / "clients.json").read_text())
    shared = (parts / "shared.payload").read_bytes()
    n = wire.HEADER.unpack(shared[: wire.HEADER.size])[5]
    for number in range(5):
        message = wire.decode((parts / f"client_000{number}.payload").read_bytes(), n, 0)
        assert (message.client, message.weights.bits) == (number, 4)
        assert len(message.positions) / n == pytest.approx(0.1, rel=0.01)
    assert index["settings"]["sparsity"] == 0.1
    assert wire.decode(shared, n, 0).weights.bits == 32


@pytest.mark.parametrize("flags", [["--algorithm=fedavg"], ["--algorithm=las", "--preset=compact"]], ids=str)
def test_a_part_may_hold_more_than_crosses_the_wire(program, tmp_path, flags):
    more = ["--part_sparsity", 0.2, "--part_bits", 4]
    done = program(*flags, *FEW, "--save_clients", tmp_path / "parts", *more)
    assert done.returncode == 0, done.stderr
    n = wire.HEADER.unpack((tmp_path / "parts" / "shared.payload").read_bytes()[: wire.HEADER.size])[5]
    for path in (tmp_path / "parts").glob("client_*.payload"):
        message = wire.decode(path.read_bytes(), n, 0)
        assert message.weights.bits == 4
        assert len(message.positions) == round(0.2 * n)
    refused = program(*flags, *FEW, *more)
    assert refused.returncode == 2
    assert "--part_sparsity has no effect without --save_clients" in refused.stderr


def test_a_part_that_keeps_everything_is_the_full_copy(program, tmp_path):
    done = program("--algorithm", "fedavg", *FEW, "--save_clients", tmp_path / "parts")
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(tmp_path / "parts" / "accuracy.csv")
    assert rows["personal_accuracy"].tolist() == pytest.approx(rows["full_accuracy"].tolist(), abs=0.02)
    assert "1.0 times less" in done.stdout


def test_what_clients_held_back_while_training_is_no_part_of_their_own(experiment):
    run = experiment(algorithm="las", residual="client", sparsity=0.05, save_clients="unused")
    train_round(run, 1)
    chooser = personal_models.part_compressor(run.server)
    assert run.server.compressor.feedback.left
    assert chooser.feedback is None
    assert chooser.sparsity == 0.05


def test_a_part_of_a_share_is_its_largest_changes_whatever_the_compressor(experiment):
    run = experiment(compressor="randk")
    run.settings.part_sparsity = 0.1
    part, _ = made(run)
    assert (part != 0)[: run.server.layout.n_trainable].float().mean() == pytest.approx(0.1, rel=0.01)


def test_the_share_in_a_part_changes_nothing_in_how_clients_train(experiment):
    """Nor what full copies are worth."""
    run = experiment(algorithm="fedprox", prox_momentum=0.5)
    run.settings.part_sparsity = 0.1
    chooser, shared = personal_models.part_compressor(run.server), run.server.served()
    assert (chooser.sparsity, chooser.mask_scope) == (0.1, "global")
    whole, (part, accuracies) = trained(run, 0, shared), made(run)
    kept = part != 0
    assert kept[: run.server.layout.n_trainable].float().mean() == pytest.approx(0.1, rel=0.01)
    assert torch.equal(part[kept], (whole - shared)[kept])
    assert accuracies["full_accuracy"] == on_all_images(run, whole, 0)


def trained(run, number, start):
    """The model [dim] that the client makes of `start` after the last round."""
    client = run.clients.trainer.client(number, run.settings.n_epochs + 1)
    return client.train(start, run.server.algorithm.gradient_correction).clone()


def made(run, number=0):
    """What make_part makes of a client: (the part [dim], {accuracy: figure})."""
    chooser, shared = personal_models.part_compressor(run.server), run.server.served()
    histogram = run.histograms().tolist()[number]
    judge, n, trainer = personal_models.Judge(run.evaluator), run.model.layout.n_trainable, run.clients.trainer
    _, data, accuracies = personal_models.make_part(run.server, judge, chooser, shared, number, histogram, trainer)
    return wire.decode(data, n, len(shared) - n).unpack(torch.empty_like(shared)), accuracies


def on_all_images(run, vector, number):
    """The accuracy of `vector [dim]` on the client's mix of labels, from all of the test set."""
    test = run.splits.test
    predictions = run.evaluator.predict(vector, test).argmax(1)
    return personal_parts.own_accuracy(predictions, test.labels, run.histograms().tolist()[number])


def test_a_full_copy_is_all_that_the_client_trained(experiment):
    """Not only what it sends: a client's part holds 5 % of that."""
    run = experiment(algorithm="las", sparsity=0.05, dirichlet=0.1, n_clients=5, n_client_epochs=3)
    shared = run.server.served()
    for number in range(5):
        whole = trained(run, number, shared)
        part, accuracies = made(run, number)
        kept = part != 0
        assert kept.float().mean() == pytest.approx(0.05, rel=0.02)
        assert torch.equal(part[kept], (whole - shared)[kept])
        assert accuracies["full_accuracy"] == on_all_images(run, whole, number)
        assert accuracies["personal_accuracy"] == on_all_images(run, shared + part, number)


def test_a_client_that_diverges_is_named(experiment):
    with pytest.raises(FloatingPointError, match="client 3 diverges as it trains once more"):
        made(experiment(lr=1e9), 3)


@pytest.mark.parametrize("dirichlet", ["iid", 0.1])
def test_images_of_classes_that_a_client_lacks_are_not_evaluated_and_change_nothing(experiment, monkeypatch, dirichlet):
    run, seen = experiment(dirichlet=dirichlet), []
    train_round(run, 1)
    judge, normalise = personal_models.Judge(run.evaluator), datasets.Splits.normalise
    for number, histogram in enumerate(run.histograms().tolist()):
        expected = on_all_images(run, run.server.theta, number)
        with monkeypatch.context() as patch:
            patch.setattr(datasets.Splits, "normalise", lambda splits, x: seen.append(len(x)) or normalise(splits, x))
            assert judge(run.server.theta, histogram, run.model) == expected
        counts = torch.bincount(run.splits.test.labels, minlength=10)
        assert seen.pop() == sum(n for n, held in zip(counts.tolist(), histogram, strict=True) if held)


def test_a_client_whose_classes_nobody_tests_is_judged_as_nothing(experiment):
    run = experiment()
    labels = run.splits.test.labels
    run.evaluator.splits = replace(run.splits, test=run.splits.test[labels != 3])
    assert personal_models.Judge(run.evaluator)(run.server.theta, [0, 0, 0, 5, *[0] * 6], run.model) == 0


@pytest.mark.parametrize("part_sparsity", [None, 0.05])
def test_a_client_with_norm_layers_of_its_own_starts_from_these_and_keeps_them(experiment, part_sparsity):
    run = experiment(algorithm="fedbn", dirichlet=0.3, n_clients=5, participation=0.8, n_epochs=3)
    run.settings.part_sparsity = part_sparsity
    train_rounds(run, 3)
    shared, own, n = run.server.served(), run.server.algorithm.own, run.model.layout.n_trainable
    for number in range(5):
        start = run.server.algorithm.client_model(run.server.theta, number)
        whole = trained(run, number, start)
        part, accuracies = made(run, number)
        model = shared + part
        if number in run.server.algorithm.own_layers:
            assert not torch.equal(start, shared)
            assert torch.allclose(model[own], whole[own], atol=1e-6)
        assert torch.allclose(model[n:], whole[n:], atol=1e-5)  # statistics of BatchNorm
        if part_sparsity is None:
            assert torch.allclose(model, whole, atol=1e-5)
        else:
            others = torch.ones(len(model), dtype=torch.bool).index_fill_(0, own, False)
            assert (part[others] != 0).float().mean() == pytest.approx(0.05, rel=0.05)
        assert accuracies["full_accuracy"] == on_all_images(run, whole, number)
        assert accuracies["personal_accuracy"] == on_all_images(run, model, number)


def test_a_model_of_dittos_trains_once_more_under_its_pull(experiment):
    run = experiment(algorithm="ditto", ditto_lambda=5.0, dirichlet=0.3, n_clients=3, participation=1.0)
    train_rounds(run, 2)
    server, client = run.server, run.clients.trainer.client(1, run.settings.n_epochs + 1)
    whole = client.train(server.algorithm.own_model[1], server.algorithm.own_correction(server.theta)).clone()
    free = trained(run, 1, server.algorithm.own_model[1])
    part, _ = made(run, 1)
    torch.testing.assert_close(server.theta + part, whole, rtol=0, atol=1e-5)
    assert (free - server.theta).norm() > 1.5 * (whole - server.theta).norm()


# --------------------------------------------------------------------------------------------------------------------
# Parts that are masks of the way from the initial model to the shared one


@pytest.mark.parametrize(
    ("kind", "weights"),
    [
        ("tall", [1.0, 4.0, 0.0, 0.0]),  # |3| >= 0.5 |4 - 3|; |1| < 0.5 |-2 - 1|; |1| < 0.5 |4 - 1|
        ("emr", [1.0, 5.25 / 8 * 4, 0.0, 5.25 / 8 * 4]),  # magnitudes of 5.25 for the client, of 8 where both agree
    ],
)
def test_masks_by_hand(kind, weights):
    """Three weights of four moved, and a buffer, from a model of ones and zeros."""
    start = torch.tensor([1.0, 0.0, 0.0, 0.0, 7.0])
    full, shared = torch.tensor([1.25, 3.0, 1.0, 1.0, 9.0]), torch.tensor([1.0, 4.0, -2.0, 4.0, 8.0])
    made = TaskMasks(start, kind, 0.5)
    message = wire.decode(wire.encode(wire.pack(made.part(full, shared, 4), 4, made.bits)), 4, 1)
    torch.testing.assert_close(with_part(shared, message, start), torch.tensor([*weights, 9.0]))


@pytest.mark.parametrize("kind", ["tall", "emr"])
def test_a_client_that_ends_where_all_do_has_all_of_the_way(kind):
    start, shared = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    made = TaskMasks(start, kind, 0.4)
    message = wire.pack(made.part(shared, shared, 7), 7, made.bits)
    torch.testing.assert_close(with_part(shared, message, start), shared)


def test_nothing_is_rescaled_where_nothing_is_left():
    start, shared = torch.zeros(3), torch.tensor([1.0, 2.0, 0.0])
    made = TaskMasks(start, "emr", None)
    message = wire.pack(made.part(-shared, shared, 3), 3, made.bits)
    assert with_part(shared, message, start).tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", ["tall", "emr"])
def test_masks_that_were_saved_are_judged_alike_and_take_a_bit_a_weight(program, tmp_path, kind):
    flags = ["--algorithm=fedavg", *FEW, "--participation=1", "--save_clients", tmp_path / "parts"]
    done = program(*flags, "--part_kind", kind)
    assert done.returncode == 0, done.stderr
    before = pd.read_csv(tmp_path / "parts" / "accuracy.csv")
    (tmp_path / "parts" / "accuracy.csv").unlink()
    again = program("--evaluate_clients", tmp_path / "parts")
    assert again.returncode == 0, again.stderr
    assert pd.read_csv(tmp_path / "parts" / "accuracy.csv").equals(before)
    whole = (tmp_path / "parts" / "shared.payload").stat().st_size
    assert before["bytes"].max() < whole / 30
    assert before["personal_accuracy"].mean() > 0.5
    (tmp_path / "parts" / "start.payload").unlink()
    refused = program("--evaluate_clients", tmp_path / "parts")
    assert refused.returncode == 2
    assert "start.payload: No such file" in refused.stderr


@pytest.mark.parametrize("kind", ["sparse", "tall"])
def test_parts_of_another_kind_than_said_are_refused(program, tmp_path, kind):
    folder = tmp_path / "parts"
    assert program("--algorithm=fedavg", *FEW, "--save_clients", folder, "--part_kind", kind).returncode == 0
    index = json.loads((folder / "clients.json").read_text())
    if kind == "sparse":
        shutil.copy(folder / "shared.payload", folder / "start.payload")
        index["start"] = index["shared"]
    else:
        del index["start"]
    (folder / "clients.json").write_text(json.dumps(index))
    refused = program("--evaluate_clients", folder)
    assert refused.returncode == 2
    assert "is of another kind than clients.json says" in refused.stderr


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--part_kind", "tall"], "--part_kind has no effect without --save_clients"),
        (
            ["--save_clients", "x", "--part_kind", "emr", "--part_bits", "8"],
            "--part_bits has no effect with --part_kind emr",
        ),
        (["--save_clients", "x", "--tall_lambda", "0.3"], "--tall_lambda has no effect without --part_kind tall"),
        (["--save_clients", "x", "--part_kind", "emr", "--algorithm", "ditto"], "clients have more of their own"),
    ],
    ids=str,
)
def test_what_makes_no_masks_is_refused(program, flags, why):
    refused = program(*FEW, *flags)
    assert refused.returncode == 2
    assert why in refused.stderr


# --------------------------------------------------------------------------------------------------------------------
# A run that is ended while it saves its clients


class Impatient:
    """A CheckpointPolicy that hears a signal when `n` parts are in its folder that were not there before."""

    def __init__(self, folder, n):
        self.folder, self.at = folder, n + len(list(folder.glob("client_*.payload")))

    @property
    def stop(self):
        return self

    @property
    def number(self):
        return signal.SIGTERM if len(list(self.folder.glob("client_*.payload"))) >= self.at else None

    def raise_if_stopped(self):
        raise Interrupted("stopped")


SAVED = {
    **{"algorithm": "las", "sparsity": 0.1, "value_bits": 4, "model_name": "small"},
    **{"dirichlet": 0.3, "n_clients": 7, "parallel_clients": 1},
}


@pytest.fixture
def saving(experiment, tmp_path, monkeypatch, small_networks):
    """A function (folder's name, how many parts a saver waits for, settings) -> (clients that trained, the summary)."""
    ids, make = [], personal_models.make_part
    monkeypatch.setattr(personal_models, "make_part", lambda *given: ids.append(given[4]) or make(*given))

    def save(name, patience=None, theta=0.0, **settings):
        run = experiment(**SAVED | settings, save_clients=str(tmp_path / name))
        run.server.theta = run.server.theta + theta
        saver, found = patience and Impatient(tmp_path / name, patience), None
        ids.clear()
        with contextlib.suppress(Interrupted):
            found = personal_models.save_clients(run, saver)
        return list(ids), found

    return save


def left(folder):
    """{name: bytes} of all files but figures and the lock; of clients.json, what does not hang on the folder."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".png"}
    if "clients.json" in files:
        index = json.loads(files["clients.json"])
        files["clients.json"] = index | {"settings": None}
    return files


def test_saving_goes_on_with_the_next_client_and_leaves_the_same(saving, tmp_path):
    every, found = saving("whole")
    assert every == list(range(7))
    assert saving("ended", 3) == ([0, 1, 2], None)
    assert not (tmp_path / "ended" / "clients.json").exists()
    assert saving("ended", 2) == ([3, 4], None)
    assert saving("ended") == ([5, 6], found)
    assert left(tmp_path / "ended") == left(tmp_path / "whole")
    assert "clients.jsonl" not in left(tmp_path / "whole")
    assert saving("ended") == ([], found)  # it was killed before the run's record was written
    assert left(tmp_path / "ended") == left(tmp_path / "whole")


def test_parts_that_are_not_whole_or_not_the_runs_own_are_made_again(saving, tmp_path):
    saving("whole")
    folder = tmp_path / "ended"
    saving("ended", 5)
    (folder / "client_0000.payload").write_bytes((folder / "client_0000.payload").read_bytes()[:-1])
    (folder / "client_0002.payload").write_bytes((folder / "client_0001.payload").read_bytes())
    (folder / "client_0003.payload").unlink()
    (folder / "client_0006.payload").write_bytes(b"of somebody")
    (folder / ".client_0005.payload.123.tmp").write_bytes(b"half")
    lines = (folder / "clients.jsonl").read_text()
    (folder / "clients.jsonl").write_text(lines[:-20])  # the last of five is torn
    assert saving("ended")[0] == [0, 2, 3, 4, 5, 6]
    assert left(folder) == left(tmp_path / "whole")


@pytest.mark.parametrize("line", ["[]", "{", "1e999", "\0", "[" * 100000])
def test_an_account_that_is_none_is_not_believed(saving, tmp_path, line):
    saving("ended", 3)
    path = tmp_path / "ended" / "clients.jsonl"
    path.write_text(line + "\n" + path.read_text())
    assert saving("ended")[0] == list(range(7))


@pytest.mark.parametrize("change", [{"theta": 1e-3}, {"part_bits": 8}, {"part_sparsity": 0.2}, {"seed": 1}], ids=str)
def test_parts_to_another_model_or_of_another_kind_are_made_again(saving, change):
    saving("ended", 3)
    assert saving("ended", **change)[0] == list(range(7))


def test_parts_of_another_code_are_made_again(saving, monkeypatch):
    saving("ended", 3)
    monkeypatch.setattr(provenance, "code_hash", lambda settings: "other")
    assert saving("ended")[0] == list(range(7))


def test_clients_are_saved_alike_side_by_side(saving, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _, found = saving("one")
        numbers, same = saving("several", parallel_clients=3, participation=1.0)
    finally:
        torch.set_num_threads(before)
    files, others = (
        {name: data for name, data in left(tmp_path / folder).items() if name != "clients.json"}
        for folder in ("one", "several")
    )
    assert (same, others) == (found, files)
    assert sorted(numbers) == list(range(7))


def test_progress_is_shown_where_there_is_a_terminal(experiment, monkeypatch, capsys):
    run = experiment()
    assert list(personal_models.progress(run.settings, iter("abc"), 2, 5)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    list(personal_models.progress(run.settings, iter("abc"), 2, 5))
    assert "personal models: 100%" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------------------
# Folders that two runs might share


def settings_in(tmp_path, **settings):
    """Settings of a quick run with all outputs under tmp_path."""
    files = {"metrics_dir": "m", "plots_dir": "p", "checkpoint_dir": "c", "results_file": "r.csv"}
    quick = {**QUICK, "n_clients": 5, "quiet": True, "device": "cpu"}
    return resolve({**quick, **{name: str(tmp_path / file) for name, file in files.items()}, **settings})


OUTPUTS = {"save_clients": ("parts", "parts/.lock"), "save_weights": ("w.pt", ".w.pt.lock")}


@pytest.mark.parametrize("flag", OUTPUTS)
def test_a_run_has_its_outputs_to_itself_from_its_start_to_its_record(tmp_path, monkeypatch, flag):
    path, lock = (tmp_path / name for name in OUTPUTS[flag])
    prepare, leave, moments = fedalg.prepare, fedalg.leave_results, []
    monkeypatch.setattr(fedalg, "prepare", lambda *given: moments.append(locks.is_held(lock)) or prepare(*given))
    monkeypatch.setattr(fedalg, "leave_results", lambda *given: leave(*given) or moments.append(locks.is_held(lock)))
    args = settings_in(tmp_path, **{flag: str(path)})
    fedalg.main(args)
    assert moments == [True, True]
    assert not locks.is_held(lock)
    fedalg.main(args)  # already finished
    assert len(moments) == 2


@pytest.mark.parametrize("flag", OUTPUTS)
def test_the_second_run_with_an_output_is_refused_before_it_does_anything(tmp_path, monkeypatch, flag):
    path = tmp_path / OUTPUTS[flag][0]
    monkeypatch.setattr(fedalg, "prepare", lambda *given: pytest.fail("it began"))
    with (
        outputs.held(settings_in(tmp_path, **{flag: str(path)}, seed=1), "the_first", anew=True),
        pytest.raises(InputError, match=f"--{flag} {path}: the_first is writing there") as refused,
    ):
        fedalg.main(settings_in(tmp_path, **{flag: str(path)}, seed=2, overwrite=True))
    assert "\n" not in str(refused.value)


def test_one_file_by_two_names_is_one_output(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    for flag, file in (("save_weights", "w.pt"), ("save_clients", "parts")):
        mine, yours = (settings_in(tmp_path, **{flag: str(tmp_path / name / file)}) for name in ("there", "link"))
        with outputs.held(mine, "mine", anew=True), pytest.raises(InputError, match="mine is writing there"):  # noqa: SIM117
            with outputs.held(yours, "yours", anew=True):
                pass


def test_what_was_written_while_a_run_waited_for_the_lock_counts(tmp_path, monkeypatch):
    args = settings_in(tmp_path, save_weights=str(tmp_path / "w.pt"))
    lock = locks.exclusively

    def late(*given):
        (tmp_path / "w.pt").write_bytes(b"of the other")
        return lock(*given)

    monkeypatch.setattr(locks, "exclusively", late)
    with pytest.raises(InputError, match="is there already"), outputs.held(args, "mine", anew=True):
        pass


def test_a_folder_that_is_held_can_be_judged(parts):
    with locks.exclusively(parts / ".lock", "another"):
        args = resolve({"evaluate_clients": str(parts), "device": "cpu", "quiet": True})
        assert fedalg.main(args)["personal_accuracy"] > 0.5


def test_a_finished_run_whose_parts_another_wrote_over_is_not_called_finished(tmp_path, saving):
    args = settings_in(tmp_path, save_clients=str(tmp_path / "parts"))
    name = run_name(args)
    fedalg.main(args)
    assert run_record.already_finished(args, name)
    args.part_bits = 8
    with pytest.raises(InputError, match="is of a run with part_bits = None, not 8"):
        run_record.already_finished(args, name)
    args.part_bits, path = None, tmp_path / "parts" / "clients.json"
    index = json.loads(path.read_text())
    older = {name: value for name, value in index["settings"].items() if name != "part_kind"}  # all were sparse then
    path.write_text(json.dumps(index | {"settings": older}))
    assert run_record.already_finished(args, name)
    args.part_kind = "tall"
    with pytest.raises(InputError, match="is of a run with part_kind = None, not tall"):
        run_record.already_finished(args, name)
    args.part_kind = "sparse"
    path.write_text(json.dumps(index | {"run": "another"}))
    with pytest.raises(InputError, match="is of another: name its own folder"):
        run_record.already_finished(args, name)
    fedalg.main(settings_in(tmp_path, save_clients=args.save_clients, seed=1, overwrite=True))
    for older in (False, True):  # which says its settings only
        if older:
            index = json.loads(path.read_text())
            path.write_text(json.dumps({key: index[key] for key in ("format", "settings", "clients")}))
        with pytest.raises(InputError, match="of a run with seed = 1, not 0"):
            fedalg.main(args)


def test_a_run_that_goes_on_writes_over_nothing_of_another(tmp_path, saving):
    """The other came while it was away."""
    args = settings_in(tmp_path, save_clients=str(tmp_path / "parts"), save_weights=str(tmp_path / "w.pt"))
    name, earlier = run_name(args), vars(args)
    outputs.check(args, name, earlier)
    saving("parts", 2)
    with pytest.raises(InputError, match="parts: holds what is not of this run"):
        outputs.check(args, name, earlier)
    outputs.check(args, json.loads((tmp_path / "parts" / "clients.jsonl").read_text().split("\n")[0])["run"], earlier)
    saving("parts")
    with pytest.raises(InputError, match="parts: holds what is not of this run"):
        outputs.check(args, name, earlier, trained=True)
    args.save_clients = None
    (tmp_path / "w.pt").write_bytes(b"of the other")
    with pytest.raises(InputError, match="is there already"):
        outputs.check(args, name, earlier)  # the rounds are not through: it cannot be its own
    outputs.check(args, name, earlier, trained=True)


def test_a_run_is_finished_even_if_a_client_diverges_as_it_trains_once_more(program, tmp_path):
    flags = ["--algorithm", "las", "--sparsity", "0.05", "--n_epochs", "3", "--n_client_epochs", "1", "--lr", "1"]
    done = program(*flags, "--batch_size", "16", "--quiet", "--save_clients", tmp_path / "parts")
    if "--save_clients" not in done.stderr:
        pytest.skip("this machine rounds so that the run itself diverges, or no client does")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert len(pd.read_csv(tmp_path / "results.csv")) == 1
    done = program(*flags, "--batch_size", "16", "--quiet", "--save_clients", tmp_path / "parts")
    assert (done.returncode, "clients.json is not there" in done.stderr) == (2, True)


def test_nothing_is_written_over(program, parts):
    before = (parts / "clients.json").read_bytes()
    done = program("--algorithm", "fedavg", *FEW, "--save_clients", parts)
    assert (done.returncode, "is not empty" in done.stderr, done.stderr.count("\n")) == (2, True, 1)
    assert (parts / "clients.json").read_bytes() == before


def spoil(parts, what):
    path = parts / "clients.json"
    index = json.loads(path.read_text())
    if what == "part":
        (parts / "client_0003.payload").write_bytes((parts / "client_0002.payload").read_bytes()[:-1])
    elif what == "gone":
        (parts / "client_0003.payload").unlink()
    elif what == "shared":
        (parts / "shared.payload").write_bytes(b"FSU" + bytes(100))
    elif what == "json":
        path.write_text("{")
    elif what == "format":
        path.write_text(json.dumps(index | {"format": "other"}))
    elif what == "histogram":
        path.write_text(json.dumps(index | {"clients": [{"histogram": [1, -1], "full_accuracy": 0.5}]}))
    elif what == "classes":
        path.write_text(json.dumps(index | {"clients": [{"histogram": [1, 1], "full_accuracy": 0.5}]}))
    elif what == "none":
        path.write_text(json.dumps(index | {"clients": []}))
    elif what == "nan":
        path.write_text(json.dumps(index | {"clients": [{"histogram": [1] * 10, "full_accuracy": float("nan")}]}))
    elif what == "swapped":
        (parts / "client_0003.payload").write_bytes((parts / "client_0002.payload").read_bytes())
    elif what == "unknown":
        path.write_text(json.dumps(index | {"settings": index["settings"] | {"evil": 1}}))
    elif what == "value":
        path.write_text(json.dumps(index | {"settings": index["settings"] | {"lr": "__import__('os')"}}))
    elif what == "model":
        path.write_text(json.dumps(index | {"settings": index["settings"] | {"norm": "group"}}))


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("part", "client_0003.payload: not a message"),
        ("gone", "client_0003.payload: No such file"),
        ("shared", "shared.payload: not a message"),
        ("json", "not JSON"),
        ("format", "is not of --save_clients"),
        ("histogram", "label histogram"),
        ("classes", "another dataset"),
        ("none", "has no clients"),
        ("nan", "NaN is no number of JSON"),
        ("swapped", "client_0003.payload: is the part of client 2"),
        ("unknown", "there is no setting evil"),
        ("value", "is not a positive number"),
        ("model", "the model"),
    ],
)
def test_files_that_are_damaged_or_made_up_are_refused(program, parts, what, why):
    spoil(parts, what)
    done = program("--evaluate_clients", parts)
    assert done.returncode == 2
    assert why in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_shared_model_that_began_pretrained_needs_no_download(program, parts):
    path = parts / "clients.json"
    index = json.loads(path.read_text())
    index["settings"] |= {"init_weights": "gone.pt", "partition_file": "gone.json"}
    path.write_text(json.dumps(index))
    assert program("--evaluate_clients", parts).returncode == 0


def test_settings_of_a_file_are_checked_like_typed_ones():
    settings = settings_of(resolve({"algorithm": "las", "seed": 7, "eval_train": True, "data_root": "/x"}))
    args = checked_settings(settings, "here")
    assert (args.algorithm, args.seed, args.eval_train, args.data_root) == ("las", 7, True, "./data")
    with pytest.raises(InputError, match="here: there is no setting lrr"):
        checked_settings({"lrr": 1}, "here")


def test_a_run_goes_on_though_its_other_outputs_lie_in_the_folder_of_its_parts(tmp_path):
    (tmp_path / "metrics").mkdir()
    personal_parts.check_folder(tmp_path, "run")
    with pytest.raises(InputError, match="is not empty"):
        personal_parts.check_folder(tmp_path)
    (tmp_path / "client_0000.payload").write_bytes(b"of another")
    with pytest.raises(InputError, match="holds what is not of this run"):
        personal_parts.check_folder(tmp_path, "run")


def test_nobody_needs_to_read_what_is_said_of_the_parts(saving, monkeypatch, capsys):
    def broken(*words, **more):
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", broken)
    assert saving("alone")[1]["times_smaller"] > 1


def test_parts_that_other_code_left_are_judged_with_a_warning(parts, capsys):
    path = parts / "clients.json"
    index = json.loads(path.read_text())
    personal_parts.load(parts)
    assert capsys.readouterr().err == ""
    path.write_text(json.dumps(index | {"code": "0" * 16}))
    personal_parts.load(parts)
    assert capsys.readouterr().err == f"warning: {path} was left by another version of the code\n"


@pytest.mark.parametrize("shelf", registry.SHELVES)
def test_what_another_program_has_is_asked_for_as_a_plugin(shelf):
    with pytest.raises(InputError, match=f"x: there is no --{shelf} mine: is it of a --plugin"):
        checked_settings({shelf: "mine:2" if shelf == "partition" else "mine"}, "x")


def test_parts_of_a_folder_of_images_are_judged_wherever_that_is(tmp_path, program):
    draw = np.random.default_rng(0)
    for i in range(40):
        folder = tmp_path / "there" / "pets" / "real" / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(256, size=(8, 8, 3), dtype="u1")).save(folder / f"{i}.png")
    words = ["--dataset", "pets", "--image_size", "8", "--model_name", "cnn", "--n_clients", "2", "--n_epochs", "1"]
    done = program(*words, "--data_root", tmp_path / "there", "--save_clients", tmp_path / "parts", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "parts" / "clients.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"code": "0" * 16}))
    done = program("--evaluate_clients", tmp_path / "parts", "--data_root", tmp_path / "there")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("another version of the code") == 1
    elsewhere = program("--evaluate_clients", tmp_path / "parts").stderr
    assert "there is no --dataset pets: is it of a --plugin or in --data_root ./data?" in elsewhere
