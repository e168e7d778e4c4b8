"""Files of torch.save that are more than they seem, and networks and settings that would fill the memory."""

import io
import os
import resource
import zipfile

import pytest
import torch

from fedmerge import datasets, memory, networks, tensor_files
from fedmerge.config.parser import checked_settings
from fedmerge.config.resolve import resolve
from fedmerge.errors import InputError
from fedmerge.simulation import personal_parts
from fedmerge.simulation.experiment import prepare_judge

THREE = torch.arange(3.0)


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def repacked(content, compression=zipfile.ZIP_STORED, comment=b"", **changed):
    """The zip archive once more, with records {end of the name: bytes} of other content."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, changed.get(name.rpartition("/")[2].partition(".")[0], old.read(name)))
        new.comment = comment
    return file.getvalue()


WEIGHT = torch.zeros(2, 3)
EXPANDED = torch.zeros(1).expand(10**9)
BOMB = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85R."  # of 64 GiB
NOT_PLAIN = {
    "sparse": WEIGHT.to_sparse(),
    "meta": WEIGHT.to("meta"),
    "nested": torch.nested.nested_tensor([THREE, WEIGHT[0]]),
    "quantised": torch.quantize_per_tensor(WEIGHT, 0.1, 0, torch.qint8),
    "float8": WEIGHT.to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_tensors_of_odd_kinds_are_refused_before_torch_reads_them(tmp_path, kind, monkeypatch):
    (tmp_path / "x.pt").write_bytes(saved({"a": NOT_PLAIN[kind]}))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch reads it"))
    with pytest.raises(InputError, match=r"x\.pt: not a thing \(it has '") as caught:
        tensor_files.load(tmp_path / "x.pt", 2**20, "a thing")
    assert "\n" not in str(caught.value)


SMALL = {
    "compressed records": repacked(saved(torch.zeros(10**6)), zipfile.ZIP_DEFLATED),
    "a byte array of 64 GiB": repacked(saved(THREE), data=BOMB),
    "a comment behind its directory": repacked(saved(THREE), comment=b"PK"),
    "no archive": b"hello",
    "nothing": b"",
}


@pytest.mark.parametrize("kind", SMALL)
def test_a_small_file_takes_little_memory(tmp_path, kind, monkeypatch):
    (tmp_path / "x.pt").write_bytes(SMALL[kind])
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch reads it"))
    with pytest.raises(InputError, match=r"x\.pt: not a thing"):
        tensor_files.load(tmp_path / "x.pt", 2**20, "a thing")


def test_what_torch_saves_of_plain_things_is_read(tmp_path):
    value = {
        "a": [1, "b", None, 2.5, True],
        "t": THREE,
        **{str(t): WEIGHT.to(t) for t in (torch.half, torch.bool, torch.int32)},
    }
    (tmp_path / "x.pt").write_bytes(saved(value))
    read = tensor_files.load(tmp_path / "x.pt", 2**20, "a thing")
    assert read["a"] == value["a"]
    assert all(torch.equal(read[key], t) and tensor_files.is_plain(read[key]) for key, t in value.items() if key != "a")


@pytest.mark.parametrize("tensor", [EXPANDED, *NOT_PLAIN.values(), WEIGHT.t().requires_grad_(), 3], ids=str)
def test_only_dense_tensors_with_memory_of_their_own_are_plain(tensor):
    if tensor is not NOT_PLAIN["float8"]:  # its kind is refused, not its memory
        assert not tensor_files.is_plain(tensor)
    assert tensor_files.is_plain(WEIGHT)
    assert tensor_files.is_plain(WEIGHT.t())


def test_a_small_cache_of_many_images_is_refused(tmp_path, capsys):
    image, label = torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    good = {"images": image, "labels": label, "wnids": ["a"]}
    odd = [
        {"images": image.expand(10**9, -1, -1, -1), "labels": label.expand(10**9)},
        {"images": image.to_sparse()},
        {"images": image.to("meta")},
        {"labels": label[None]},
        {"labels": label[0]},
        {"labels": [0]},
        {"wnids": [[]]},
        {"images": None},
    ]
    for change in odd:
        for part in ("train", "val"):
            torch.save(good | change, tmp_path / f"tinyimagenet_{part}_cache.pt")
        with pytest.raises(InputError, match="not a cache of import_TIN") as caught:
            datasets.load_dataset("TinyImageNet", tmp_path, 0)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["expanded", "meta", "nested", "sparse", "bomb", "labels", "format", "too large"])
def test_odd_weights_are_refused_in_one_line(tmp_path, change):
    module = networks.build_model("cnn", 1, 8, 10, "none", 0)
    path, first = tmp_path / "w.pt", next(iter(module.state_dict()))
    networks.save_weights(path, module, "DIGITS")
    content = torch.load(path, weights_only=True)
    tensor = content["state"][first]
    if change in NOT_PLAIN:
        content["state"][first] = NOT_PLAIN[change]
    elif change == "expanded":
        content["state"][first] = torch.zeros(1).expand(tensor.shape)
    elif change == "bomb":
        content["more"] = torch.zeros(2**22)
    elif change == "too large":
        content["more"] = torch.zeros(2**25)
    elif change in ("labels", "format"):
        content[change] = torch.zeros(3)
    torch.save(content, path)
    if change == "bomb":
        path.write_bytes(repacked(path.read_bytes(), zipfile.ZIP_DEFLATED))
    if change == "labels":  # of no dataset, so that the head is left
        return networks.load_weights(module, path, "DIGITS")
    with pytest.raises(InputError, match=r"w\.pt: ") as caught:
        networks.load_weights(module, path, "DIGITS")
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------------------------------
# Memory


@pytest.fixture
def nothing_allocated(monkeypatch):
    """Weights may be made on the meta device only."""
    empty = torch.empty

    def only_there(*sizes, **how):
        made = empty(*sizes, **how)
        assert made.is_meta, "memory was taken"
        return made

    monkeypatch.setattr(torch, "empty", only_there)


def test_a_network_of_more_than_2_to_the_31_weights_is_refused(nothing_allocated):
    with pytest.raises(InputError, match=r"--model_name cnn has 32,768,\d+,\d+ weights .* more than 2\^31: a smaller"):
        networks.build_model("cnn", 1, 4000, 10, "none", 0)


def test_a_network_that_does_not_fit_is_refused(nothing_allocated, monkeypatch):
    monkeypatch.setattr(memory, "free", lambda device: 7 * 2**30)
    with pytest.raises(InputError, match=r"536,\d+,\d+ weights .* 10\.0 GiB, and 7\.0 GiB are free: a smaller --image"):
        networks.build_model("cnn", 1, 512, 10, "none", 0)


def test_free_memory_is_that_of_the_system_or_of_the_limit():
    system = memory.free(torch.device("cpu"))
    assert 2**20 < system < 2**50
    child = os.fork()
    if child == 0:
        with open("/proc/self/statm") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + 2**28, taken + 2**28))
        os._exit(not 2**27 < memory.free(torch.device("cpu")) <= 2**28)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_belongs_to_the_machine_is_not_taken_from_a_file(tmp_path, monkeypatch):
    given = {"algorithm": "fedavg", "parallel_clients": 1024, "max_cohort_memory": 1e6, "metrics_dir": "/elsewhere"}
    read = checked_settings(given, "clients.json")
    assert (read.parallel_clients, read.max_cohort_memory, read.metrics_dir) == ("auto", 4.0, "metrics")
    monkeypatch.setattr(personal_parts, "load", lambda folder, data_root: read)
    mine = resolve({"evaluate_clients": str(tmp_path), "parallel_clients": 3, "device": "cpu"})
    assert prepare_judge(mine).clients.threads.n == 3
