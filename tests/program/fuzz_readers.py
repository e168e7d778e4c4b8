"""Hostile files for the readers, found by coverage (pip install atheris):

    python tests/program/fuzz_readers.py -max_total_time=600 -len_control=0 -max_len=400
    python tests/program/fuzz_readers.py cifar pickles -max_total_time=600 -max_len=4000

The last byte of an input says which reader gets the rest, the one before whether that is taken as it comes or as
changes to a whole file. Each must read it, or raise an InputError of one line. With the name of a reader, that one
alone is tried. What the reader of CIFAR's batches reads, an unpickler must read as the same.
"""

import contextlib
import gzip
import io
import pickle
import sys
import tempfile
from collections import Counter
from pathlib import Path

import atheris
import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = map(str, (HERE, HERE.parent, HERE.parent.parent))

with atheris.instrument_imports(include=["fedmerge", "pickletools"]):
    from fedmerge import partitions
    from fedmerge.checkpoint.store import Checkpoints, _read
    from fedmerge.datasets import cifar_pickle, fashion_mnist, published
    from fedmerge.datasets.cifar import _batch
    from fedmerge.errors import InputError
    from fedmerge.reporting import results_csv, run_status, runs
    from fedmerge.reporting.run_tables import RECORDS, ROUNDS, runs_of
import torch  # noqa: E402
from test_fuzz import BATCH, CONTENT, IDX, archive  # noqa: E402

torch.set_num_threads(1)
FOLDER = Path(tempfile.mkdtemp())
ZEROS = torch.zeros(4, dtype=torch.int64)
cases = Counter()


def written(name, content):
    path = FOLDER / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


class Unpickler(pickle.Unpickler):
    """What unpickles a batch; only for what cifar_pickle has read before."""

    def find_class(self, module, name):
        cifar_pickle.NAMES[f"{module} {name}"]
        return super().find_class(module, name)


def cifar(content):
    read = None
    with contextlib.suppress(ValueError):
        read = cifar_pickle.loads(content)
    if read is not None:
        _compare(read, content)
    _batch(content, "batch", b"labels")


def _compare(read, content):
    try:
        expected = Unpickler(io.BytesIO(content), encoding="bytes").load()
    except (ValueError, OverflowError, pickle.UnpicklingError):  # frames and protocols that are not so
        return
    assert read.keys() == expected.keys()
    for name, value in read.items():
        if value is None:
            assert expected[name].size == 0
        elif isinstance(value, np.ndarray):
            assert value.dtype == expected[name].dtype == np.uint8
            assert np.array_equal(value, expected[name])
        else:
            assert value == expected[name]
    cases["cifar", "same"] += 1


def idx(content):
    fashion_mnist._idx(content, "idx")


def tar(content):
    published.read_tar(written("x.tar.gz", content), {"test_batch"})


def split(content):
    partitions.load_partition(written("split.json", content), ZEROS, 2)


def results(content):
    path = written("results.csv", content)
    try:
        results_csv.add_results(path, [{"run": "x"}])
    except InputError:
        assert path.read_bytes() == content
        raise


def record(content):
    written("m/fedavg_DIGITS_iid_0.json", content)
    state, _ = run_status.state_of(["--metrics_dir", str(FOLDER / "m")])
    assert state.startswith(("failed: ", "done", "stopped after", "failed after"))
    results_csv.rebuild_results(FOLDER / "m", FOLDER / "rebuilt.csv")
    (FOLDER / "rebuilt.csv").unlink(missing_ok=True)


def records(content):
    written(f"t/{ROUNDS}", gzip.compress(b"run,epoch\r\na,1\r\n"))
    written(f"t/{RECORDS}", gzip.compress(content))
    runs.load_runs(FOLDER / "t")


def rounds(content):
    written(f"t/{ROUNDS}", gzip.compress(content))
    written(f"t/{RECORDS}", gzip.compress(b'{"run": "a"}\n'))
    source = runs_of(FOLDER / "t")
    for name in source.names:
        source.rounds(name)


def listed(content):
    for words in run_status.lines_of(written("list", content)):
        run_status.state_of([*words, "--metrics_dir", str(FOLDER / "m")])


def checkpoint(content):
    with contextlib.suppress(OSError, ValueError):
        _read(written("run.pt", content), "cpu")  # Checkpoints.load takes these for damage


def whole_checkpoint():
    kept = Checkpoints(FOLDER, "whole")
    kept.save({"theta": torch.zeros(3), "rows": [{"epoch": 1}]})
    return kept.newest.read_bytes()


READERS = [
    (cifar, BATCH),
    (cifar, pickle.dumps(CONTENT, protocol=5)),
    (idx, IDX),
    (tar, archive([("a/test_batch", BATCH)])),
    (split, b'{"clients": [[0, 1], [2, 3]], "labels_sha256": "%s"}' % partitions.labels_hash(ZEROS).encode()),
    (results, b"run,accuracy\nfedavg,0.5\n"),
    (record, b'{"run": "fedavg_DIGITS_iid_0", "settings": {"algorithm": "fedavg", "seed": 0}, "finished": true}'),
    (records, b'{"run": "a", "settings": {"seed": 0}, "finished": false, "csv_columns": null}\n'),
    (rounds, b'run,epoch\r\na,1\r\n"a","2"\r\n'),
    (listed, b"--algorithm fedavg --seed 1 # a comment\n"),
    (checkpoint, whole_checkpoint()),
]


def check(data):
    given = atheris.FuzzedDataProvider(data)
    read, whole = chosen[given.ConsumeIntInRange(0, len(chosen) - 1)]
    if given.ConsumeBool():
        content = bytearray(whole)
        for _ in range(given.ConsumeIntInRange(0, 6)):
            place = given.ConsumeIntInRange(0, len(content))
            content[place : place + given.ConsumeIntInRange(0, 4)] = given.ConsumeBytes(given.ConsumeIntInRange(0, 4))
        content = bytes(content)
    else:
        content = given.ConsumeBytes(10**6)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            read(content)
    except InputError as error:
        if "\n" in str(error):
            raise AssertionError(f"of several lines: {error}") from error
        cases[read.__name__, "refused"] += 1
    else:
        cases[read.__name__, "read"] += 1
    if cases.total() % 20_000 == 0:
        print(dict(cases), flush=True)


if __name__ == "__main__":
    chosen = [reader for reader in READERS if reader[0].__name__ in sys.argv[1:2]]
    if chosen:
        del sys.argv[1]
    chosen = chosen or READERS
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
