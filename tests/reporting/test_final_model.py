"""--save_weights: safetensors and ONNX hold the model that was judged, and a card says what it is."""

import importlib.util
import json
import shlex

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fedalg
from fedmerge import networks
from fedmerge.config.parser import parse_args
from fedmerge.config.resolve import resolve
from fedmerge.config.run_name import run_name
from fedmerge.errors import InputError
from fedmerge.networks import exported
from fedmerge.registry import plugins_held
from fedmerge.simulation.experiment import load_splits, starting_module

QUICK = {"dataset": "DIGITS", "rounds": 2, "n_clients": 4, "local_steps": 3, "norm": "batch", "quiet": True}


def run(tmp_path, monkeypatch, file, **settings):
    """Train for two rounds; return the path of the model, and the run's settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fedalg, "draw", lambda *_: "no figures")
    args = parse_args([f"--{k}={v}" if v is not True else f"--{k}" for k, v in (QUICK | settings).items()])
    args.save_weights = file
    fedalg.main(args, say=lambda line: None)
    return tmp_path / file, args


def judged(tmp_path, args):
    return json.loads((tmp_path / "metrics" / f"{run_name(args)}.json").read_text())["final"]["accuracy"]


def test_safetensors_hold_the_model_that_was_judged(tmp_path, monkeypatch):
    path, args = run(tmp_path, monkeypatch, "m.safetensors")
    splits = load_splits(args)
    module = starting_module(resolve({"dataset": "DIGITS", "norm": "batch", "init_weights": str(path)}), splits).eval()
    hits = module(splits.normalise(splits.test.images)).argmax(1) == splits.test.labels
    assert hits.float().mean().item() == pytest.approx(judged(tmp_path, args))
    tensors, metadata = exported.read_safetensors(path.read_bytes())
    assert metadata == {"format": "fedalg-weights-1", "labels": "DIGITS"}
    assert set(tensors) == set(module.state_dict())


def test_a_card_has_the_command_that_makes_the_run_again(tmp_path, monkeypatch):
    path, args = run(tmp_path, monkeypatch, "m.pt", algorithm="las", preset="compact", dirichlet=0.5, seed=3)
    text = path.with_name("m.pt.md").read_text()
    (command,) = [line for line in text.splitlines() if line.startswith("python fedalg.py ")]
    assert run_name(parse_args(shlex.split(command)[2:])) == run_name(args)
    assert f"{100 * judged(tmp_path, args):.2f} %" in text
    assert "| trained by | LaS-FL (`--algorithm las`), 2 rounds, 4 clients |" in text
    assert "float32 [batch, 1, 8, 8], pixels between 0 and 1, minus [0.28" in text


def test_neither_model_nor_card_is_written_over(tmp_path, monkeypatch):
    (tmp_path / "m.safetensors.md").write_text("mine")
    with pytest.raises(InputError, match=r"m\.safetensors\.md: is there already"):
        run(tmp_path, monkeypatch, "m.safetensors")
    run(tmp_path, monkeypatch, "m.safetensors", overwrite=True)
    assert (tmp_path / "m.safetensors.md").read_text().startswith("# fedavg_DIGITS")


def test_a_card_that_cannot_be_written_is_found_before_the_run(tmp_path, monkeypatch):
    (tmp_path / "m.pt.md").mkdir()
    with pytest.raises(InputError, match=r"m\.pt\.md: "):
        run(tmp_path, monkeypatch, "m.pt", overwrite=True)
    assert not list(tmp_path.glob("metrics/*.csv"))


def test_a_card_tells_of_plugin_and_data(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from fedmerge.algorithms.fedavg import FedAvg\nfrom fedmerge.registry import algorithm\n\n\n"
        '@algorithm("mine")\nclass Mine(FedAvg):\n    """FedAvg"""\n'
    )
    with plugins_held():
        run(tmp_path, monkeypatch, "m.pt", algorithm="mine", plugin="mine.py", data_root=str(tmp_path))
    command = (tmp_path / "m.pt.md").read_text()
    assert "--plugin=mine.py" in command
    assert f"--data_root={tmp_path}" in command


def test_tensors_of_another_program_are_taken_if_they_fit(tmp_path):
    module = starting_module(resolve({"dataset": "DIGITS"}), load_splits(resolve({"dataset": "DIGITS"})))
    state = {name: torch.randn_like(tensor) for name, tensor in module.state_dict().items()}
    path = tmp_path / "theirs.safetensors"
    path.write_bytes(exported.safetensors_of(state, None))
    networks.load_weights(module, path, "DIGITS")
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in state.items())
    state.pop(next(iter(state)))
    path.write_bytes(exported.safetensors_of(state, None))
    with pytest.raises(InputError, match="is for another model"):
        networks.load_weights(module, path, "DIGITS")


def test_the_head_of_other_classes_is_left_as_it_is(tmp_path):
    module = starting_module(resolve({"dataset": "DIGITS"}), load_splits(resolve({"dataset": "DIGITS"})))
    head = module.get_parameter(f"{networks.head_of(module)}.weight").clone()
    state = {name: torch.randn_like(tensor) for name, tensor in module.state_dict().items()}
    path = tmp_path / "theirs.safetensors"
    path.write_bytes(exported.safetensors_of(state, {"format": "fedalg-weights-1", "labels": "FASHION"}))
    networks.load_weights(module, path, "DIGITS")
    assert torch.equal(module.get_parameter(f"{networks.head_of(module)}.weight"), head)


WHOLE = exported.safetensors_of({"weight": torch.ones(2, 3)}, {"format": "fedalg-weights-1"})


@given(
    st.one_of(
        st.binary(max_size=100),
        st.integers(0, len(WHOLE) - 1).map(lambda n: WHOLE[:n]),
        st.tuples(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=4)).map(
            lambda change: WHOLE[: change[0]] + change[1] + WHOLE[change[0] + len(change[1]) :]
        ),
        st.text(max_size=60).map(lambda text: len(text.encode()).to_bytes(8, "little") + text.encode()),
    )
)
def test_any_bytes_are_tensors_or_refused(data):
    try:
        tensors, metadata = exported.read_safetensors(data)
    except InputError:
        return
    if tensors:
        assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
    assert isinstance(metadata, dict)


@pytest.mark.parametrize("file", ["none.safetensors", "odd.safetensors", "model.onnx"])
def test_what_cannot_be_a_start_is_one_line(tmp_path, file):
    module = torch.nn.Linear(2, 2)
    (tmp_path / "odd.safetensors").write_bytes(b"odd")
    with pytest.raises(InputError, match=file.replace(".", r"\.")) as caught:
        networks.load_weights(module, tmp_path / file)
    assert "\n" not in str(caught.value)


# ---- ONNX

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs the packages onnx, onnxscript and onnxruntime",
)


@needs_onnx
@pytest.mark.slow
def test_an_onnx_model_says_of_pixels_what_the_network_says(tmp_path, monkeypatch):
    import onnxruntime

    path, args = run(tmp_path, monkeypatch, "m.onnx", image_size=16)
    splits = load_splits(args)
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 1, 8, 8]  # it enlarges, too
    (logits,) = session.run(["logits"], {"images": (splits.test.images.float() / 255).numpy()})
    assert (logits.argmax(1) == splits.test.labels.numpy()).mean() == pytest.approx(judged(tmp_path, args))
    assert np.ptp(logits) > 0.1
    assert session.get_modelmeta().custom_metadata_map["run"] == run_name(args)
    assert "`images`, float32 [batch, 1, 8, 8]" in path.with_name("m.onnx.md").read_text()


@needs_onnx
def test_a_network_that_onnx_cannot_express_is_refused_before_the_run(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(torch.onnx, "export", refused)
    with pytest.raises(InputError, match=r"--save_weights m\.onnx: this network cannot be written as ONNX \(no such"):
        run(tmp_path, monkeypatch, "m.onnx")
    assert not list(tmp_path.glob("metrics/*.csv"))


def test_onnx_without_its_packages_is_refused(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if "onnx" in name else find(name, *more))
    with pytest.raises(InputError, match="needs a package: pip install onnx onnxscript"):
        resolve({"dataset": "DIGITS", "save_weights": "m.onnx"})
