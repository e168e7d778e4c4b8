"""What a run was made with, and whether one that is finished is still the same work."""

import ast
import io
import json
import os
import shutil
import tokenize

import pytest
import torch
from conftest import QUICK, ROOT

from fedmerge import datasets, provenance, python_source, registry, wire
from fedmerge.config.resolve import resolve
from fedmerge.config.run_name import run_name, settings_of
from fedmerge.errors import InputError
from fedmerge.reporting import run_record


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the program's source in which a test may change things; the hash is of that."""
    shutil.copy(ROOT / "fedalg.py", tmp_path)
    shutil.copytree(ROOT / "fedmerge", tmp_path / "fedmerge", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "HERE", tmp_path)
    monkeypatch.setattr(registry, "HERE", tmp_path / "fedmerge")
    for module in (provenance, python_source):
        monkeypatch.setattr(module, "version_of", lambda path: (path, path.stat().st_mtime_ns, path.stat().st_size))
    forget()
    yield tmp_path
    forget()


def forget():
    for cache in (provenance._hash_of, registry._specs):  # texts and trees are known by when files changed
        cache.cache_clear()


def current_hash(**settings):
    usual = {"algorithm": "las", "model_name": "cnn", "dataset": "DIGITS", "dirichlet": 0.5}
    return provenance.code_hash({**QUICK, **usual, **settings})


def hash_after(path, before, after):
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    forget()
    return current_hash()


ODD = (
    "a = '#'  # b",
    r"a = r'\\'  # '",
    r"a = '\'#'  # b",
    """a = "'"  # \"""",
    "a = '''#'\n''#'''#'''",
    'a = """\\"""#"""  # b',
    "a = ''  # '\nb = ''  # '",
    "a = f'{1}#{{'  # {b}",
    "a = rb'''#'''\f# b",
    "a = 'b\\\n# c'  # d",
    "# 'a\nb = 'c'",
)


def without_comments(text):
    """The text without its comments, as Python's own tokenize finds them."""
    lines = text.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    return "\n".join(lines)


def test_comments_are_what_tokenize_takes_for_comments():
    for text in [*ODD, *(file.read_text() for file in (ROOT / "fedmerge").rglob("*.py"))]:
        lines = [line.rstrip() for line in without_comments(text).split("\n") if line.strip()]
        assert provenance._code_of(text, ast.Module([], [])) == "\n".join(lines), text


NESTED = """
if a:
    pass
else:
    try:
        b
    except C:
        match d:
            case 1:
                class E:
                    'words'
                    def f(self):
                        'words'
                        for g in h:
                            def i():
                                'words'
    finally:
        def j():
            'words'
"""


def test_docstrings_are_found_wherever_they_are():
    assert "words" not in provenance._code_of(NESTED, ast.parse(NESTED))


@pytest.mark.slow
def test_the_hash_is_of_what_computes_and_not_of_words_or_figures(copy):
    first, package = current_hash(), copy / "fedmerge"
    assert hash_after(package / "algorithms" / "las.py", "# [n_trainable], what", "#  something else") == first
    assert hash_after(package / "algorithms" / "las.py", "each client sends a sparse part", "it is sparse") == first
    assert hash_after(package / "reporting" / "tables.py", "mean", "median") == first
    assert hash_after(package / "algorithms" / "fedprox.py", "self.", "2 * self.") == first  # of another algorithm
    assert current_hash(algorithm="fedprox") != first
    assert hash_after(package / "datasets" / "cifar.py", "3072", "3073") == first  # of another dataset
    assert hash_after(package / "partitions" / "labels.py", "k - 1", "k - 2") == first  # of another split
    assert current_hash(dirichlet=None, partition="labels:2") != first
    assert current_hash(dirichlet=None, partition="labels:2") == current_hash(dirichlet=None, partition="labels:3")
    assert hash_after(package / "wire" / "golomb.py", " + 1", " + 2") != first  # imported by what fedalg imports


@pytest.mark.slow
def test_every_module_that_fedalg_loads_has_a_part_in_it(copy):
    modules = [
        *("local_training/client", "wire/message", "wire/downlink", "partitions/drawn", "networks/building"),
        *("partitions/enough", "partitions/dirichlet", "datasets/loading"),
        *(
            "datasets/digits",
            "networks/cnn",
            "config/options",
            "algorithms/fedavg",
            "algorithms/las",
            "local_methods/base",
        ),
    ]
    for name in modules:
        before = current_hash()
        with (copy / "fedmerge" / f"{name}.py").open("a") as file:
            file.write("\nA_NEW_NAME = 1\n")
        forget()
        assert current_hash() != before, name


@pytest.fixture
def finished(tmp_path, program):
    """A function -> (finished process of the same command again, path of its record)."""
    flags = [word for name, value in QUICK.items() for word in (f"--{name}", value)]

    def run(*more):
        done = program(*flags, *more)
        (record,) = (tmp_path / "metrics").glob("*.json")
        return done, record

    return run


def change(path, **parts):
    record = json.loads(path.read_text())
    for part, values in parts.items():
        record[part].update(values)
    path.write_text(json.dumps(record))


def test_a_finished_run_says_what_else_it_was_made_with(finished, tmp_path):
    _, path = finished()
    again, _ = finished()
    assert (again.returncode, again.stderr) == (0, "")
    change(path, environment={"code": "0", "commit": "0123456789abcdef", "torch": "2.0.0", "pandas": "1.0"})
    again, _ = finished()
    assert again.returncode == 0
    assert "already finished" in again.stdout
    warnings = again.stderr.splitlines()
    assert len(warnings) == 2
    assert "by other code (commit 01234567); --overwrite runs it again" in warnings[0]
    assert f"by torch 2.0.0, not {torch.__version__}" in warnings[1]


def test_a_run_finished_on_other_data_is_refused(finished):
    _, path = finished()
    change(path, data={"crc32": "00000000"})
    again, _ = finished()
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
    assert "was run on other files of DIGITS than ./data holds now" in again.stderr
    assert finished("--overwrite")[0].returncode == 0
    assert finished()[0].returncode == 0


def test_a_finished_run_whose_data_is_gone_says_that_it_cannot_be_told(tmp_path, capsys, monkeypatch):
    args = resolve({**QUICK, "metrics_dir": str(tmp_path)})
    name = run_name(args)
    record = {"finished": True, "settings": settings_of(args), "partition": {"sha256": ""}}
    record |= {"payload_version": wire.VERSION, "data": {"crc32": "1"}, "environment": {}}
    (tmp_path / f"{name}.json").write_text(json.dumps(record))
    (tmp_path / f"{name}_metrics.csv").touch()

    def gone(*what):
        raise InputError("no DIGITS in ./data")

    monkeypatch.setattr(datasets, "fingerprint", gone)
    assert run_record.already_finished(args, name)
    assert "on the same data cannot be told: no DIGITS in ./data" in capsys.readouterr().err


def test_what_an_old_record_does_not_tell_is_no_difference():
    assert provenance.differences({}, QUICK) == []
    assert provenance.differences({"commit": "abc", "python": "2.7"}, QUICK) == []


PLUGIN = """
from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.registry import algorithm
\f
@algorithm("mine")
class Mine(FedAvg):
    def global_model(self, theta):
        import helper_of_mine
        return theta * 1  # 1
"""


@pytest.mark.parametrize(
    ("name", "before", "after", "same"),
    [
        ("mine.py", "theta * 1", "theta * 2", False),  # below a form feed, at which no line ends
        ("mine.py", "# 1", "# 2", True),
        ("helper_of_mine.py", "one = 1", "one = 2", False),
        ("helper_of_mine.py", "# 1", "# 2", True),
    ],
)
def test_what_a_plugin_computes_with_has_a_part_in_it(tmp_path, name, before, after, same):
    (tmp_path / "mine.py").write_text(PLUGIN)
    registry.use_plugins([tmp_path / "mine.py"])
    (tmp_path / "helper_of_mine.py").write_text("one = 1  # 1\n")
    hashes = [provenance.code_hash({"algorithm": "mine"})]
    changed = (tmp_path / name).read_text().replace(before, after)
    (tmp_path / name).write_text(changed)
    provenance._hash_of.cache_clear()
    os.utime(tmp_path / name, ns=(1, 1))  # another version, however coarse the clock of the file system is
    hashes.append(provenance.code_hash({"algorithm": "mine"}))
    assert (hashes[0] == hashes[1]) == same


def test_a_file_beside_a_plugin_that_is_no_text_is_a_line(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    registry.use_plugins([tmp_path / "mine.py"])
    (tmp_path / "helper_of_mine.py").write_bytes(b"one = 1\n# \xe9\n")
    with pytest.raises(InputError, match=r"helper_of_mine\.py: line 2: is not utf-8"):
        provenance.code_hash({"algorithm": "mine"})
