"""A method in a file of its own: it is found, recorded and named, and its author's mistakes are said in one line."""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import processes
import pytest

from fedmerge import provenance, registry
from fedmerge.errors import InputError

ROOT = Path(__file__).resolve().parent.parent.parent
GOOD = '''
from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.compressors.base import Compressor
from fedmerge.registry import algorithm, compressor, merging_rule


@algorithm("half", title="Half a step", paper="nobody 2026", defaults={"merge": "twice"})
class Half(FedAvg):
    """a share of FedAvg's step"""

    options = {"half_share": (0.5, "share", "how much of it")}

    def merge(self, theta, step, aggregate):
        return theta + self.half_share * step


@merging_rule("twice", title="twice the mean", needs=("update",))
def twice(aggregate, layout):
    """twice the mean"""
    return 2 * aggregate.mean["update"]


@compressor("first", title="the first")
class First(Compressor):
    """the first weights only"""

    options = {"n_first": (10, "count", "how many")}

    def choose(self, change, start, client):
        mask = change.new_zeros(len(change)).bool()
        mask[: self.n_first] = True
        return mask
'''
FLAGS = ["--dataset", "DIGITS", "--n_epochs", "2", "--n_client_epochs", "1", "--quiet", "--out", "out"]


@pytest.fixture
def program(spawn):
    """A function of a folder, flags and variables -> finished process of fedalg.py."""

    def run(folder, *flags, **environment):
        return processes.finished(spawn, [str(ROOT / "fedalg.py"), *FLAGS, *flags], folder, environment)

    return run


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.py").write_text(GOOD)
    return tmp_path


@pytest.mark.slow
def test_a_plugin_is_a_method_like_others(program, folder):
    done = program(folder, "--plugin", "mine.py", "--algorithm", "half", "--compressor", "first", "--n_first", "7")
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "out" / "metrics").glob("*.json")
    assert path.name.startswith("half_DIGITS_iid_0_n_epochs=2")
    assert "compressor=first_n_first=7" in path.name
    record = json.loads(path.read_text())
    assert record["settings"]["half_share"] == 0.5
    assert record["settings"]["merge"] == "twice"
    assert record["title"] == "Half a step"
    by_folder = program(folder, "--algorithm", "half", "--overwrite", FEDMERGE_PLUGINS=str(folder))
    assert by_folder.returncode == 0, by_folder.stderr


@pytest.mark.slow
def test_its_code_is_part_of_what_computes(program, folder):
    flags = ("--plugin", "mine.py", "--algorithm", "half")
    program(folder, *flags)
    assert "other code" not in program(folder, *flags).stderr
    (folder / "mine.py").write_text(GOOD.replace("return 2 *", "return 3 *"))
    assert "other code" in program(folder, *flags).stderr


@pytest.mark.slow
def test_half_of_twice_the_mean_is_fedavg(program, folder):
    program(folder, "--plugin", "mine.py", "--algorithm", "half")
    program(folder)
    ours, theirs = (
        [line.split(",")[6:8] for line in next((folder / "out" / "metrics").glob(f"{name}_*.csv")).read_text().split()]
        for name in ("half", "fedavg")
    )
    assert ours == theirs


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("(0.5, ", "(0.25 * 2, ", 11, "option half_share of Half: is read, not run, and must be written out"),
        ('"share"', '"shares"', 11, "is of the kind 'shares': count,"),
        ('"share", "how much of it"', '"share"', 11, "is not (default, kind, help)"),
        ('"half_share"', '"half share"', 11, "which is no name"),
        ('"half_share"', '"lr"', 11, "declares --lr otherwise than every run: another name"),
        ('"half_share"', '"sparsity"', 11, "declares --sparsity otherwise than --compressor topk: another name"),
        ('options = {"half_share"', 'options = OTHER | {"half_share"', 11, "are not written out as a dict"),
        ('"half"', '"fedavg"', 8, "--algorithm fedavg is registered already, in"),
        ('"half"', '"lg-fedavg"', 8, "--algorithm lg-fedavg is registered already as lg_fedavg, which is the same in"),
        ("title=", "title=1 +", 7, "title of half: is read, not run"),
        ("def choose(", "def choose", 29, "is not Python"),
        ("import Compressor", "import Compressors", 3, "ImportError: cannot import name 'Compressors'"),
    ],
)
def test_a_mistake_is_one_line_with_file_and_line(program, folder, old, new, line, said):
    assert old in GOOD
    (folder / "mine.py").write_text(GOOD.replace(old, new, 1))
    done = program(folder, "--plugin", "mine.py", "--algorithm", "half")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert f"mine.py: line {line}: " in done.stderr
    assert said in done.stderr


def test_a_plugin_that_is_not_there_is_refused(program, folder):
    done = program(folder, "--plugin", "nowhere.py")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "nowhere.py: there is no such file or folder" in done.stderr


def test_what_editors_leave_beside_plugins_does_not_count(folder):
    (folder / "._mine.py").write_bytes(b"\x00\xff")
    (folder / ".#mine.py").symlink_to("nowhere")
    registry.use_plugins([folder])
    assert "half" in registry.ALGORITHMS


def test_two_files_of_one_name_both_have_a_part_in_the_code(folder):
    for name, source in (("one", GOOD[: GOOD.index("@merging_rule")]), ("two", GOOD[GOOD.index("@merging_rule") :])):
        (folder / name).mkdir()
        (folder / name / "same.py").write_text("from fedmerge.registry import *\n" + source)
    registry.use_plugins([folder / "one", folder / "two"])
    settings, path, hashes = {"algorithm": "half", "merge": "twice"}, folder / "two" / "same.py", set()
    for factor in (2, 33):
        path.write_text(path.read_text().replace("2 * agg", f"{factor} * agg"))
        hashes.add(provenance.code_hash(settings))
    assert len(hashes) == 2


def with_helper(folder, name, factor, helper="steps"):
    """Leave a plugin in a folder of its own, and a helper beside it; return the plugin's Path."""
    folder.mkdir(exist_ok=True)
    source = GOOD[GOOD.index("@merging_rule") : GOOD.index("@compressor")]
    source = source.replace("twice", name).replace("2 *", f"{helper}.factor() *")
    (folder / f"{name}.py").write_text(f"import {helper}\nfrom fedmerge.registry import merging_rule\n\n\n{source}")
    (folder / f"{helper}.py").write_text(f"def factor():\n    return {factor}\n")
    return folder / f"{name}.py"


def merged(name):
    return registry.MERGING_RULES[name](SimpleNamespace(mean={"update": 1}), None)


def test_what_lies_beside_a_plugin_is_read_again_when_it_changed(tmp_path):
    path = with_helper(tmp_path, "changed", 3, "changed_steps")
    registry.use_plugins([path])
    assert merged("changed") == 3
    before = provenance.code_hash({"merge": "changed"})
    with_helper(tmp_path, "changed", 44, "changed_steps")
    assert merged("changed") == 44
    assert provenance.code_hash({"merge": "changed"}) != before


@pytest.mark.parametrize("changed", ["plugin", "helper"])
def test_a_file_changed_within_a_second_to_the_same_size_is_not_the_old_one(tmp_path, monkeypatch, changed):
    """For Python, which compares seconds and sizes, the bytecode of the first is that of the second."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    plugin, helper, now = f"racy_{changed}", f"beside_racy_{changed}", time.time_ns() // 10**9 * 10**9
    path = with_helper(tmp_path, plugin, 3, helper)
    file = tmp_path / f"{plugin if changed == 'plugin' else helper}.py"
    os.utime(file, ns=(now, now))
    registry.use_plugins([path])
    assert merged(plugin) == 3
    assert list(tmp_path.glob(f"__pycache__/{file.stem}.*"))
    file.write_text(file.read_text().replace("return 3", "return 4").replace(".factor() *", ".factor() +"))
    os.utime(file, ns=(now + 1000, now + 1000))
    assert merged(plugin) == 4


@pytest.mark.parametrize("helper", ["one_steps", "one_package.deep"])
def test_two_helpers_of_one_name_are_not_taken_for_each_other(tmp_path, helper):
    if "." in helper:
        for folder in ("one", "two"):
            (tmp_path / folder / "one_package").mkdir(parents=True)
            (tmp_path / folder / "one_package" / "__init__.py").touch()
        (tmp_path / "deep").mkdir()
    one, two = (
        with_helper(tmp_path / name, f"of_{name}", factor, "one_steps") for name, factor in (("one", 3), ("two", 5))
    )
    if "." in helper:
        for path, factor in ((one, 3), (two, 5)):
            (path.parent / "one_package" / "deep.py").write_text(f"def factor():\n    return {factor}\n")
            text = path.read_text()
            path.write_text(text.replace("import one_steps", f"import {helper}").replace("one_steps.", f"{helper}."))
    registry.use_plugins([one, two])
    assert merged("of_one") == 3
    taken = helper.split(".")[0]
    with pytest.raises(InputError, match=rf"of_two.py: imports {taken}, which lies beside it, but {taken} is \S*one\S"):
        merged("of_two")


@pytest.mark.parametrize("name", ["torch", "math", "sys"])
def test_a_helper_hides_behind_no_module_of_others(tmp_path, name):
    registry.use_plugins([with_helper(tmp_path, "hidden", 3, name)])
    with pytest.raises(InputError, match=rf"hidden.py: imports {name}, which lies beside it, but {name} is .* here"):
        merged("hidden")


def test_plugins_of_one_thread_are_not_those_of_another(folder):
    registry.use_plugins([folder / "mine.py"])
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: "half" in registry.ALGORITHMS).result() is False
        (folder / "bad.py").write_text('@algorithm("bad")\nclass no python')
        pool.submit(registry.use_plugins, [folder / "bad.py"]).result()
        with pytest.raises(InputError, match=r"bad.py: line 2: is not Python"):
            pool.submit(lambda: "half" in registry.ALGORITHMS).result()
    assert "half" in registry.ALGORITHMS
