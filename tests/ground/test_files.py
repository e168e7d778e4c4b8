"""Files that are none: FIFOs, devices, folders, sparse giants, links in the place of what is written."""

import os
import re

import pytest
import torch

import fedalg
import import_TIN
from fedmerge import files, networks, partitions, saving
from fedmerge.checkpoint.store import _read
from fedmerge.config.options import all_options
from fedmerge.config.parser import parse_args
from fedmerge.config.resolve import resolve
from fedmerge.config.run_name import run_name
from fedmerge.datasets.folder import load_folder
from fedmerge.errors import InputError
from fedmerge.networks.flat_model import Layout
from fedmerge.registry import DATASETS
from fedmerge.reporting import results_csv, run_status
from fedmerge.simulation import personal_parts


def sparse(path):
    with open(path, "wb") as file:
        file.truncate(2**41)


KINDS = {"FIFO": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": os.mkdir, "giant": sparse}


def config(path):
    try:
        parse_args(["--config", str(path)])
    except SystemExit as error:
        raise InputError(str(path)) from error


def tar(path):
    path.rename(path.with_name("cifar-10-python.tar.gz"))
    DATASETS["CIFAR10"](path.parent, 0)


def cifar(path):
    (path.parent / "cifar-10-batches-py").mkdir()
    path.rename(path.parent / "cifar-10-batches-py" / "data_batch_1")
    DATASETS["CIFAR10"](path.parent, 0)


def idx(path):
    for prefix in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (path.parent / f"{prefix}-{kind}-ubyte.gz").write_bytes(b"")
    path.replace(path.parent / "train-images-idx3-ubyte.gz") if not path.is_dir() else _move_folder(path)
    DATASETS["FashionMNIST"](path.parent, 0)


def _move_folder(path):
    (path.parent / "train-images-idx3-ubyte.gz").unlink()
    path.rename(path.parent / "train-images-idx3-ubyte.gz")


def image(path):
    folder = path.parent / "set" / "domain" / "class"
    folder.mkdir(parents=True)
    path.rename(folder / "x.png")
    load_folder(path.parent / "set", 8)


def zipped(path):
    path.rename(path.with_name("tiny-imagenet-200.zip"))
    import_TIN.open_source(path.with_name("tiny-imagenet-200.zip")).read("wnids.txt")


def unpacked(path):
    path.rename(path.with_name("wnids.txt"))
    import_TIN.list_images(import_TIN.FolderSource(path.parent))


def cache(path):
    path.rename(path.with_name("tinyimagenet_train_cache.pt"))
    DATASETS["TinyImageNet"](path.parent, 0)


def clients(path):
    path.rename(path.with_name(personal_parts.INDEX))
    personal_parts.load(path.parent)


def record(path):
    path.rename(path.with_name("fedavg_DIGITS_iid_0.json"))
    state, _ = run_status.state_of(["--metrics_dir", str(path.parent)])
    raise InputError(state) if state.startswith("failed") else AssertionError(state)


READERS = {
    "config": config,
    "list": run_status.lines_of,
    "json": saving.read_json,
    "record": record,
    "results": results_csv.read_results,
    "partition": lambda path: partitions.load_partition(path, torch.zeros(4, dtype=torch.int64), 2),
    "partition that names a run": lambda path: run_name(resolve({"partition_file": str(path)})),
    "weights": lambda path: networks.load_weights(networks.build_model("cnn", 1, 8, 10, "none", 0), path),
    "checkpoint": lambda path: _read(path, "cpu"),
    "clients.json": clients,
    "part": lambda path: personal_parts._read(path, Layout(("a",), (5,), 5, 7), "cpu"),
    "tar": tar,
    "CIFAR batch": cifar,
    "IDX": idx,
    "image": image,
    "zip": zipped,
    "folder of Tiny-ImageNet": unpacked,
    "cache": cache,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_refused_before_it_is_read(tmp_path, kind, reader, capsys):
    if (kind, reader) in (("folder", "image"), ("folder", "zip"), ("folder", "folder of Tiny-ImageNet")):
        pytest.skip("a folder is looked into")
    path = tmp_path / "given.json"
    KINDS[kind](path)
    with pytest.raises(InputError) as caught:
        READERS[reader](path)
    said = f"{caught.value} {capsys.readouterr().err}".strip()
    assert re.search("is not a regular file|bytes, more than the", said)
    assert "\n" not in said


def test_a_file_of_just_the_largest_size_is_read(tmp_path):
    (tmp_path / "x").write_bytes(bytes(5))
    assert files.read_bytes(tmp_path / "x", 5) == bytes(5)
    with pytest.raises(InputError, match="has 5 bytes, more than the 4 that are read"):
        files.read_bytes(tmp_path / "x", 4)


PATHS = [name for name, option in all_options().items() if option.kind == "path"]


@pytest.mark.parametrize("name", PATHS)
def test_a_path_with_a_nul_is_refused_in_one_line(tmp_path, capsys, name):
    (tmp_path / "flags").write_text(f"--dataset DIGITS\n--{name} '{tmp_path}/a\0b.json'\n")
    with pytest.raises(SystemExit):
        parse_args(["--config", str(tmp_path / "flags")])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "flags: line 2: holds a NUL character" in said
    with pytest.raises(InputError, match="NUL"):
        resolve({name: f"{tmp_path}/a\0b.json", **({"track": "tensorboard"} if name == "track_dir" else {})})


RUN = "fedavg_DIGITS_iid_0"
PLACES = ["m/{run}.json", "m/{run}_metrics.csv", "m/.{run}.lock", "p/{run}_partition.png", "c/{run}.pt"]
PLACES += ["c/{run}.previous.pt", "c/.{run}.lock", "r.csv.lock", "r.csv", "w.pt", "s/clients.json", "s/accuracy.csv"]


@pytest.mark.parametrize("place", PLACES)
def test_a_run_says_before_its_work_which_of_its_files_is_a_link(tmp_path, place, monkeypatch):
    monkeypatch.setattr(fedalg, "prepare", lambda *_: pytest.fail("work has begun"))
    outputs = {"metrics_dir": "m", "plots_dir": "p", "checkpoint_dir": "c", "results_file": "r.csv"}
    outputs |= {"save_weights": "w.pt", "save_clients": "s"}
    for name in "mpcs":
        (tmp_path / "real" / name).mkdir(parents=True)
        (tmp_path / name).symlink_to(tmp_path / "real" / name)  # folders may be links
    link = tmp_path / place.format(run=RUN)
    link.symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match="is not a file that can be written, but a symbolic link") as caught:
        fedalg.main(resolve({**{k: str(tmp_path / v) for k, v in outputs.items()}, "overwrite": True}))
    assert link.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_clients_are_not_judged_into_a_link(tmp_path, monkeypatch):
    monkeypatch.setattr(fedalg, "prepare_judge", lambda *_: pytest.fail("work has begun"))
    (tmp_path / "accuracy.png").symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match=r"accuracy\.png: is not a file"):
        fedalg.main(resolve({"evaluate_clients": str(tmp_path)}))
