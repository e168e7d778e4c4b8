"""fedmerge.run: what fedalg.py does, from Python; refusals are exceptions."""

import gc
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import fedmerge
from fedmerge.errors import InputError
from fedmerge.networks import FlatModel

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


def test_a_model_of_a_plugins_network_outlives_its_run(run, tmp_path):
    plugin = str(Path(__file__).resolve().parents[1] / "small_networks.py")
    flags = {"model_name": "tiny", "norm": "batch", "plugin": plugin, "save_weights": str(tmp_path / "weights.pt")}
    trained, found = run(**flags), run(**flags)
    run()  # without the plugin
    for one, other in zip(trained.model().parameters(), found.model().parameters(), strict=True):
        assert torch.equal(one, other)


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
        ({"lr": torch.tensor([0.1, 0.2])}, r"lr: takes one value, not float32 \[2\]"),
        ({"lr": np.array([])}, "lr: takes one value, not NumPy's float64"),
        ({"config": 5}, "config: 5 is no path"),
        ({"config": ["flags.txt"]}, "config: .*is no path"),
        ({"plugin": 5}, "plugin: 5 is no path"),
        ({"plugin": ["nowhere.py", 5]}, "plugin: 5 is no path"),
        ({"plugin": ["nowhere.py", "neither.py"]}, "--plugin .*/nowhere.py: there is no such file"),
        ({"metrics_dir": 5}, "metrics_dir: 5 is no path"),
        ({"callbacks": 5}, "callbacks: 5 is no function, nor a list of them"),
        ({"callbacks": [print, None]}, "callbacks: None is no function"),
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


@pytest.mark.slow
def test_runs_in_several_threads_are_what_they_are_alone(run):
    expected, found = {}, {}
    for seed in range(4):
        expected[seed] = run(seed=seed, out="alone").history["test_losses"].tolist()

    def go(seed):
        found[seed] = run(seed=seed, out="together").history["test_losses"].tolist()

    threads = [threading.Thread(target=go, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_nothing_of_the_packages_front_needs_torch():
    import subprocess
    import sys

    names = ["Run", "compare", "load_rounds", "load_runs", "run"]
    code = f"assert fedmerge.__all__ == {names}; fedmerge.load_runs; assert 'torch' not in sys.modules"
    code = f"import sys, fedmerge; {code}"
    subprocess.run([sys.executable, "-c", code], check=True)


PLUGIN = """
from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.registry import algorithm


@algorithm("scaled", title="scaled")
class Scaled(FedAvg):
    \"\"\"a factor on the step\"\"\"

    def merge(self, theta, step, aggregate):
        return theta + {factor} * step
"""


def test_a_plugin_is_read_again_when_it_changed(run, tmp_path, capsys):
    path = tmp_path / "mine.py"
    accuracies = []
    for factor in (1.0, 0.5):
        path.write_text(PLUGIN.format(factor=factor))
        accuracies.append(run(plugin=path, algorithm="scaled", overwrite=True).history["test_losses"].iloc[-1])
    assert accuracies[0] != accuracies[1]
    path.write_text(PLUGIN.format(factor=0.25))
    capsys.readouterr()
    run(plugin=path, algorithm="scaled")
    assert "finished, but by other code" in capsys.readouterr().err


def test_a_plugin_is_of_one_run_also_if_it_was_refused(run, tmp_path):
    for name, source in (("one", PLUGIN), ("other", PLUGIN), ("broken", PLUGIN + "def x(")):
        (tmp_path / f"{name}.py").write_text(source.replace("{factor}", "1.0"))
    assert run(plugin=tmp_path / "one.py", algorithm="scaled", out="1").record["title"] == "scaled"
    assert run(plugin=tmp_path / "other.py", algorithm="scaled", out="2").record["title"] == "scaled"
    with pytest.raises(InputError, match=r"broken\.py: line .* is not Python"):
        run(plugin=tmp_path / "broken.py", algorithm="scaled")
    with pytest.raises(InputError, match="invalid choice: 'scaled'"):
        run(algorithm="scaled")
    (tmp_path / "broken.py").write_text(PLUGIN.replace("{factor}", "1.0"))
    assert run(plugin=tmp_path / "broken.py", algorithm="scaled", out="3").record["finished"]


def test_a_plugin_takes_from_the_files_beside_it(run, tmp_path):
    (tmp_path / "base_of_mine.py").write_text(
        PLUGIN.replace("{factor}", "self.my").replace('("scaled"', '("scaled_base"')
    )
    text = (
        (tmp_path / "base_of_mine.py")
        .read_text()
        .replace("    def merge", '    options = {"my": (1.0, "positive", "x")}\n\n    def merge')
    )
    (tmp_path / "base_of_mine.py").write_text(text)
    (tmp_path / "mine.py").write_text(
        "from base_of_mine import Scaled as Base\nfrom fedmerge.registry import algorithm\n\n\n"
        '@algorithm("child")\nclass Child(Base):\n    """child"""\n'
    )
    assert run(plugin=tmp_path / "mine.py", algorithm="child", my=0.5).record["settings"]["my"] == 0.5


def test_callbacks_hear_of_each_round(run):
    rows = []
    found = run(callbacks=[lambda row: row.clear(), rows.append])  # each has a row of its own
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[-1]["test_accs"] == found.history["test_accs"].iloc[-1]


def test_quiet_prints_nothing(run, capsys):
    for _ in range(2):  # trained, and finished already
        run(quiet=True, save_clients="parts")
        assert capsys.readouterr() == ("", "")


def test_a_callback_may_be_one_or_none(run, capsys):
    run(callbacks=print)
    assert capsys.readouterr().out.count("'epoch': ") == 2
    assert run(callbacks=None, overwrite=True).record["finished"]


def test_several_plugins_may_be_named(run, tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(PLUGIN.replace("{factor}", "1.0").replace('"scaled"', f'"{name}"'))
    plugins = [tmp_path / "one.py", str(tmp_path / "two.py")]
    for name in ("one", "two"):
        assert run(plugin=plugins, algorithm=name, n_clients=np.int32(4)).settings.n_clients == 4


def test_flags_may_be_in_a_file(run, tmp_path):
    (tmp_path / "flags.txt").write_text("--algorithm las  # and\n--sparsity 0.3 --seed 4\n")
    settings = run(config=tmp_path / "flags.txt", seed=5).settings
    assert (settings.algorithm, settings.sparsity, settings.seed) == ("las", 0.3, 5)
    (tmp_path / "flags.txt").write_text("--lr much\n")
    with pytest.raises(InputError, match=r"flags\.txt: argument --lr: 'much' is not a positive number"):
        run(config=tmp_path / "flags.txt")


def test_a_run_is_found_from_another_folder_and_shown_without_its_files(run, tmp_path, monkeypatch):
    found = run()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(found.history) == 2
    assert "test accuracy" in repr(found)
    for path in (tmp_path / "metrics").iterdir():
        path.unlink()
    assert found.name in repr(found)


def test_numbers_of_numpy_and_torchs_state_of_the_moment_do_not_matter(run, tmp_path):
    expected = run(eval_train=True, out="1")
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            found = run(eval_train=np.bool_(True), seed=np.int64(0), out="2", deterministic=True)
        assert torch.get_default_dtype() == torch.float64
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.history["test_losses"].tolist() == expected.history["test_losses"].tolist()


def test_a_setting_by_two_names_is_refused(run):
    with pytest.raises(InputError, match="n_epochs is there by two names"):
        run(n_epochs=3)


@pytest.mark.slow
def test_runs_leave_no_threads_and_no_models_behind(run):
    def left():
        gc.collect()
        return sum(isinstance(thing, FlatModel) for thing in gc.get_objects())

    run(parallel_clients=3)
    before, models = threading.active_count(), left()
    for seed in (1, 2, 3):
        run(parallel_clients=3, seed=seed)
    assert left() == models
    for _ in range(100):  # threads end in their own time
        if threading.active_count() <= before:
            break
        time.sleep(0.05)
    assert threading.active_count() <= before
