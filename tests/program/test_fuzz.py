"""Files that nobody meant to write: whatever is in them, they are read, or refused in one line, and nothing is run.

Messages of the wire have a fuzzer of their own (tests/wire), checkpoints theirs (test_checkpoints.py). What once got
through stands here as an example.
"""

import gzip
import io
import json
import pickle
import struct
import tarfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fedmerge import partitions
from fedmerge.datasets import cifar, fashion_mnist, published
from fedmerge.datasets.tiny_imagenet import load_tiny_imagenet
from fedmerge.errors import InputError
from fedmerge.reporting import results_csv, run_status

pytestmark = pytest.mark.slow

settings.register_profile("fuzz", max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
FUZZ = settings.get_profile("fuzz")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
CONTENT = {b"data": np.zeros((3, 3072), np.uint8), b"labels": [1, 2, 3]}
BATCH = pickle.dumps(CONTENT, protocol=3)
IDX = struct.pack(">BBBBII", 0, 0, 8, 2, 2, 3) + bytes(6)


def refused_or(read, expected=None):
    """Call `read`; tell whether it returned. An InputError is of one line."""
    refusal = None
    try:
        read()
    except InputError as error:
        refusal = str(error)
    assert refusal is None or "\n" not in refusal
    return refusal is None


@st.composite
def mutations(draw, content):
    """`content` with bytes changed, cut out or put in."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(changed)))
        changed[place : place + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(changed)


@given(st.binary(max_size=200) | mutations(BATCH))
@example(b"\x80\x02}(U\x04data" + BATCH[12:])
@FUZZ
def test_any_cifar_batch(content):
    refused_or(lambda: cifar._batch(content, "batch", b"labels"))


def test_a_whole_cifar_batch_is_read():
    assert refused_or(lambda: cifar._batch(BATCH, "batch", b"labels"))


@pytest.mark.parametrize(
    "call", ["os.system", "builtins.eval", "numpy.load", "torch.load", "numpy.core.multiarray.scalar"]
)
def test_a_pickle_calls_nothing(call):
    module, _, name = call.rpartition(".")
    program = f"c{module}\n{name}\n(S'x'\ntR.".encode()
    with pytest.raises(InputError, match=f"wants to call {module}.{name}"):
        cifar._batch(program, "batch", b"labels")


@given(st.binary(max_size=60) | mutations(IDX))
@FUZZ
def test_any_idx_file(content):
    read = refused_or(lambda: fashion_mnist._idx(gzip.compress(content), "idx"))
    assert read or content != IDX
    refused_or(lambda: fashion_mnist._idx(content, "idx"))


def test_a_small_idx_file_that_unpacks_to_much_is_refused(monkeypatch):
    monkeypatch.setattr(published, "MAX_BYTES", 2**20)
    bomb = gzip.compress(struct.pack(">BBBBI", 0, 0, 8, 1, 2**26) + bytes(2**26))
    assert len(bomb) < 2**17
    with pytest.raises(InputError, match="holds 1048576 bytes"):
        fashion_mnist._idx(bomb, "idx")


def archive(members):
    """The bytes of a tar.gz of [(name, content or link's target)]."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def test_an_archive_writes_nothing_and_follows_no_link(tmp_path):
    (tmp_path / "secret").write_bytes(BATCH)
    path = tmp_path / "data" / "x.tar.gz"
    path.parent.mkdir()
    path.write_bytes(
        archive([("../../data_batch_1", BATCH), ("a/test_batch", str(tmp_path / "secret")), ("/etc/x", b"")])
    )
    before = sorted(tmp_path.rglob("*"))
    assert published.read_tar(path, {"data_batch_1", "test_batch"}) == {"data_batch_1": BATCH}
    assert sorted(tmp_path.rglob("*")) == before


@given(mutations(archive([("a/test_batch", BATCH)])))
@FUZZ
def test_any_archive(tmp_path, content):
    (tmp_path / "x.tar.gz").write_bytes(content)
    refused_or(lambda: published.read_tar(tmp_path / "x.tar.gz", {"test_batch"}))


ZEROS = torch.zeros(2, dtype=torch.int64)
SPLIT = {"labels_sha256": partitions.labels_hash(ZEROS), "unused": True}
PARTS = st.lists(st.lists(st.integers(-1, 3), max_size=2), min_size=2, max_size=2)


@given(JSON.map(json.dumps) | st.text(max_size=30) | (JSON | PARTS).map(lambda v: json.dumps(SPLIT | {"clients": v})))
@example('{"clients": [[1e400]]}')
@example('{"clients": [[0], [[1]]]}')
@example('{"clients": [[99999999999999999999]]}')
@FUZZ
def test_any_partition_file(tmp_path, content):
    path = tmp_path / "split.json"
    path.write_text(content)
    if refused_or(lambda: partitions.load_partition(path, ZEROS, 2, 0)):
        clients = json.loads(content)["clients"]
        assert sorted(number for part in clients for number in part) in ([0], [1], [0, 1])


@given(st.binary(max_size=100) | st.text(max_size=60).map(str.encode))
@example(b"run\n\x00\n")
@FUZZ
def test_any_csv_of_results_is_kept_or_read(tmp_path, content):
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    if not refused_or(lambda: results_csv.add_results(path, [{"run": "x"}])):
        assert path.read_bytes() == content


@given(JSON.map(json.dumps) | st.text(max_size=30) | JSON.map(lambda v: json.dumps({"settings": v, "finished": True})))
@FUZZ
def test_any_record_of_a_run(tmp_path, content):
    (tmp_path / "m").mkdir(exist_ok=True)
    (tmp_path / "m" / "fedavg_DIGITS_iid_0.json").write_text(content)
    state, name = run_status.state_of(["--metrics_dir", str(tmp_path / "m")])
    assert name == "fedavg_DIGITS_iid_0"
    assert state.startswith(("failed: ", "done", "stopped after", "failed after"))
    results_csv.rebuild_results(tmp_path / "m", tmp_path / "results.csv")


@given(st.lists(st.text(alphabet="-=abc \t$`();&|>*'\"0\n\x00é", max_size=20), max_size=4))
@FUZZ
def test_any_list_of_experiments(tmp_path, lines):
    path = tmp_path / "list"
    path.write_text("\n".join(lines), encoding="utf-8")
    try:
        found = run_status.lines_of(path)
    except InputError:  # a quote that is not closed, a NUL
        return
    for words in found:
        assert words
        assert not any(set(word) & {"\n", "\0"} for word in words)
        run_status.state_of([*words, "--metrics_dir", str(tmp_path / "m")])


@given(st.binary(max_size=100))
@example(b"")
@FUZZ
def test_any_cache_of_tiny_imagenet(tmp_path, content):
    for part in ("train", "val"):
        (tmp_path / f"tinyimagenet_{part}_cache.pt").write_bytes(content)
    assert not refused_or(lambda: load_tiny_imagenet(tmp_path, 0))
