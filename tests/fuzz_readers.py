"""Hostile files for the readers, found by coverage (pip install atheris):

    python tests/fuzz_readers.py -max_total_time=600 -len_control=0 -max_len=400

The first byte of an input says which reader gets the rest, the second whether that is taken as it comes or as changes
to a whole file. Each must read it, or raise an InputError of one line.
"""

import contextlib
import io
import pickle
import sys
import tempfile
from collections import Counter
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

with atheris.instrument_imports(
    include=["readers", "partitions", "partition_files", "records", "experiments", "checkpoints"]
):
    import checkpoints
    import experiments
    import partitions
    import readers
    import records
import torch  # noqa: E402
from test_fuzz import BATCH, IDX, archive  # noqa: E402

from utils import InputError  # noqa: E402

torch.set_num_threads(1)
FOLDER = Path(tempfile.mkdtemp())
ZEROS = torch.zeros(4, dtype=torch.int64)
cases = Counter()


def written(name, content):
    path = FOLDER / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def cifar(content):
    readers._cifar_batch(content, "batch", b"labels")


def idx(content):
    readers._idx(content, "idx")


def tar(content):
    readers._read_tar(written("x.tar.gz", content), {"test_batch"})


def split(content):
    partitions.load_partition(written("split.json", content), ZEROS, 2)


def results(content):
    path = written("results.csv", content)
    try:
        records.add_results(path, [{"run": "x"}])
    except InputError:
        assert path.read_bytes() == content
        raise


def record(content):
    written("m/fedavg_DIGITS_iid_0.json", content)
    state, _ = experiments.state_of(["--metrics_dir", str(FOLDER / "m")])
    assert state.startswith(("failed: ", "done", "stopped after", "failed after"))
    records.rebuild_results(FOLDER / "m", FOLDER / "rebuilt.csv")
    (FOLDER / "rebuilt.csv").unlink(missing_ok=True)


def listed(content):
    for words in experiments.lines_of(written("list", content)):
        experiments.state_of([*words, "--metrics_dir", str(FOLDER / "m")])


def checkpoint(content):
    with contextlib.suppress(OSError, ValueError, pickle.UnpicklingError, EOFError, RuntimeError):
        checkpoints._read(written("run.pt", content), "cpu")  # Checkpoints.load takes these for damage


def whole_checkpoint():
    kept = checkpoints.Checkpoints(FOLDER, "whole")
    kept.save({"theta": torch.zeros(3), "rows": [{"epoch": 1}]})
    return kept.newest.read_bytes()


READERS = [
    (cifar, BATCH),
    (idx, IDX),
    (tar, archive([("a/test_batch", BATCH)])),
    (split, b'{"clients": [[0, 1], [2, 3]], "labels_sha256": "%s"}' % partitions.labels_hash(ZEROS).encode()),
    (results, b"run,accuracy\nfedavg,0.5\n"),
    (record, b'{"run": "fedavg_DIGITS_iid_0", "settings": {"algorithm": "fedavg", "seed": 0}, "finished": true}'),
    (listed, b"--algorithm fedavg --seed 1 # a comment\n"),
    (checkpoint, whole_checkpoint()),
]


def check(data):
    given = atheris.FuzzedDataProvider(data)
    read, whole = READERS[given.ConsumeIntInRange(0, len(READERS) - 1)]
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
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
