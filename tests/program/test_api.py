"""fedmerge.run: what fedalg.py does, from Python; refusals are exceptions."""

import threading

import pytest
import torch

import fedmerge
from fedmerge.errors import InputError

QUICK = {"dataset": "DIGITS", "rounds": 2, "n_client_epochs": 1, "batch_size": 16, "lr": 0.05, "device": "cpu"}


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda **settings: fedmerge.run(**QUICK, **settings)


def test_a_run_has_its_history_its_record_and_its_model(run, capsys):
    found = run(algorithm="las", keep=0.1)
    assert found.name == "las_DIGITS_iid_0_n_epochs=2_n_client_epochs=1_batch_size=16_lr=0.05_sparsity=0.1"
    assert found.history["epoch"].tolist() == [1, 2]
    final = found.record["final"]
    assert final["accuracy"] == found.history["test_accs"].iloc[-1]
    assert found.record["settings"]["sparsity"] == 0.1
    model = found.model()
    assert not model.training
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert f"{final['accuracy']:.4f}" in repr(found)
    assert "2/2" in capsys.readouterr().err  # the bar


def test_its_model_is_the_one_that_was_judged(run):
    from fedmerge.config.resolve import resolve
    from fedmerge.simulation.experiment import load_splits

    found = run(algorithm="fedacg", save_weights="weights.pt")
    test = load_splits(resolve({"dataset": "DIGITS"}))
    logits = found.model()(test.normalise(test.test.images))
    assert (logits.argmax(1) == test.test.labels).float().mean().item() == pytest.approx(
        found.record["final"]["accuracy"]
    )
    again = run(algorithm="fedacg", save_weights="weights.pt")  # finished already: from the file
    for one, other in zip(found.model().parameters(), again.model().parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_finished_run_without_weights_has_no_model(run, capsys):
    run()
    with pytest.raises(InputError, match="overwrite=True"):
        run().model()
    capsys.readouterr()
    assert run().history["epoch"].tolist() == [1, 2]
    bar = capsys.readouterr().err
    assert "2/2" in bar
    assert "finished before" in bar


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"algoritm": "las"}, "there is no setting algoritm .did you mean algorithm"),
        ({"momentum": "abc"}, "'abc' is not a number in"),
        ({"n_clients": -3}, "'-3' is not a whole number"),
        ({"algorithm": "fedavg", "sparsity": 0.1}, "--sparsity has no effect without --compressor topk"),
        ({"overwrite": 1}, "neither True nor False"),
        ({"algorithm": "fednova", "local_optimizer": "adam"}, "--algorithm fednova needs --local_optimizer sgd"),
        ({"evaluate_clients": "parts"}, "trains nothing"),
        ({"dataset": "DIGITS", "image_size": 7}, "a multiple of 4"),
    ],
)
def test_what_the_command_line_refuses_is_an_exception(tmp_path, monkeypatch, settings, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        fedmerge.run(**{**QUICK, **settings} if "evaluate_clients" not in settings else settings)
    assert not list(tmp_path.iterdir())


def test_none_is_what_was_not_given(run):
    assert run(clip_norm=None, partition_file=None).settings.clip_norm is None


def test_a_run_that_diverges_says_so(run):
    with pytest.raises(FloatingPointError, match="is not finite"):
        fedmerge.run(**{**QUICK, "lr": 1e9})


def test_it_works_in_a_thread(run):
    found = []
    thread = threading.Thread(target=lambda: found.append(run(seed=5)))
    thread.start()
    thread.join()
    assert found[0].record["finished"]


def test_nothing_of_the_packages_front_needs_torch():
    import subprocess
    import sys

    code = "import sys, fedmerge; assert 'torch' not in sys.modules; assert fedmerge.__all__ == ['Run', 'run']"
    subprocess.run([sys.executable, "-c", code], check=True)
