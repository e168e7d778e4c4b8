"""The examples of the documentation, pasted into a copy of the program and run for two rounds on the digits."""

import json
import re
import shlex
import subprocess
import sys
import textwrap

import pytest
from pages import ROOT, commands, copy_program, environment, examples

from fedmerge.registry import SHELVES

FEW = "--n_epochs 2 --n_clients 4 --participation 0.5 --batch_size 64 --local_steps 3 --device cpu --quiet"
# Trains each of the command lines in a list, then calls the tests in a file, all in one process.
DRIVER = """
    import inspect, json, pathlib, runpy, sys
    import fedalg
    from fedmerge.config.parser import parse_args

    done, fedalg.draw = {}, lambda *_: "no figures"  # which take longer than two rounds
    for line in json.loads(pathlib.Path("lines.json").read_text()):
        run = fedalg.main(parse_args(line))
        done[" ".join(line)] = {"name": run.name, **run.history.rows[-1]}
    for name, test in runpy.run_path(sys.argv[1]).items():
        if name.startswith("test_"):
            test(*[pathlib.Path(name)] * len(inspect.signature(test).parameters))
            done[name] = "passed"
    pathlib.Path("done.json").write_text(json.dumps(done))
"""


def lines():
    """Return command lines, lists of words: of docs/extending.md, of README.md's example, and FedAvg's beside that."""
    found = commands(ROOT / "docs" / "extending.md")
    (fedspeed,) = [line for line in commands(ROOT / "README.md") if "fedspeed" in line]
    found += [fedspeed, re.sub(r"fedspeed --speed_lambda \S+", "fedavg", fedspeed)]
    words = [shlex.split(line) for line in found if line.startswith("python fedalg.py ")]
    return [line[2:] for line in words if "--plugin" not in line]


def digits_as_medmnist(path):
    """Write an .npz as MedMNIST has them, with the digits in colour and enlarged, of the classes below 8."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    keep = digits.target < 8
    images = np.kron(digits.images[keep] * 15, np.ones((4, 4)))[:, 2:30, 2:30, None].repeat(3, 3).astype(np.uint8)
    labels = digits.target[keep][:, None].astype(np.uint8)
    cuts = {"train": slice(0, 900), "val": slice(900, 1000), "test": slice(1000, None)}
    arrays = {"images": images, "labels": labels}
    np.savez(path, **{f"{part}_{what}": arrays[what][cut] for part, cut in cuts.items() for what in arrays})


def run(folder, *words):
    return subprocess.run([sys.executable, *words], cwd=folder, env=environment(), capture_output=True, text=True)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the program with all examples in their places, and what came of their command lines."""
    folder = copy_program(tmp_path_factory.mktemp("copy"))
    for path, code in examples().items():
        assert path == "my_paper.py" or not (folder / path).exists(), f"{path} is there already: another example"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(code)
    (folder / "data").mkdir()
    digits_as_medmnist(folder / "data" / "bloodmnist.npz")
    (folder / "lines.json").write_text(json.dumps([[*line, *FEW.split()] for line in lines()]))
    (test,) = [path for path in examples() if path.startswith("tests/")]
    done = run(folder, "-c", textwrap.dedent(DRIVER), test)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_there_is_an_example_for_every_shelf_and_its_command_line_trains_it(copy):
    done = json.loads((copy / "done.json").read_text())
    for flag, (_, shelf) in SHELVES.items():
        (path,) = [path for path in examples() if path.startswith(f"fedmerge/{shelf}/") and "fedspeed" not in path]
        (name,) = re.findall(r"^@(?!statistic)\w+\(\s*\"(\w+)\"", examples()[path], re.MULTILINE)
        runs = [line for line in done if re.search(rf"--{flag} {name}\b", line)]
        assert runs, f"no command line has --{flag} {name}"
        assert all(done[line]["epoch"] == 2 and done[line]["train_losses"] < 3 for line in runs)


def test_the_example_of_a_test_passes(copy):
    done = json.loads((copy / "done.json").read_text())
    (test,) = [code for path, code in examples().items() if path.startswith("tests/")]
    assert [name for name in re.findall(r"^def (test_\w+)", test, re.MULTILINE) if done[name] != "passed"] == []


def test_the_readmes_example_is_named_and_trains_otherwise_than_fedavg(copy):
    done = json.loads((copy / "done.json").read_text())
    names = ("fedspeed", "fedavg")
    new, avg = ([row for line, row in done.items() if f"--algorithm {name} " in line] for name in names)
    assert "speed_lambda=20" in new[0]["name"]
    assert new[0]["bytes_up"] == avg[0]["bytes_up"]
    assert new[0]["test_losses"] != avg[0]["test_losses"]


@pytest.mark.slow
def test_the_plugin_trains_without_a_copy(copy, tmp_path):
    """The program that lies there takes the file from where it is, and says whose options are whose."""
    (line,) = [c for c in commands(ROOT / "docs" / "extending.md") if c.startswith("python fedalg.py --plugin")]
    (tmp_path / "my_paper.py").write_text(examples()["my_paper.py"])
    done = run(tmp_path, ROOT / "fedalg.py", *shlex.split(line)[2:], *FEW.split())
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("rfa_DIGITS_iid_0_")


def test_a_file_that_is_missing_or_damaged_of_the_example_dataset_is_refused(copy):
    (copy / "bad").mkdir()
    (copy / "bad" / "bloodmnist.npz").write_bytes(b"PK\x03\x04 no more")
    code = """
        from fedmerge.datasets import load_dataset
        from fedmerge.errors import InputError

        for root in ("none", "bad"):
            try:
                load_dataset("BloodMNIST", root, 0)
            except InputError as error:
                print(error)
    """
    done = run(copy, "-c", textwrap.dedent(code))
    missing, damaged = done.stdout.splitlines()
    assert "python data.py --download BloodMNIST" in missing
    assert "bloodmnist.npz: is no file of MedMNIST" in damaged
