"""`python -m fedmerge`: runs in a list, one in full, two beside each other, and their removal."""

import json
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from conftest import ROOT
from made_runs import change, write_run

from fedmerge import __main__ as program
from fedmerge import locks
from fedmerge.errors import InputError
from fedmerge.reporting import results_csv, run_list


@pytest.fixture
def folder(tmp_path):
    """Three runs: finished, stopped after two of four rounds, and failed; the second's name begins as the first's."""
    places = {"metrics_dir": "metrics", "plots_dir": "p", "checkpoint_dir": "c", "results_file": "r.csv"}
    left = {name: str(tmp_path / place) for name, place in places.items()}
    different = ({}, {"lr": 0.5}, {"algorithm": "las"})
    names = [write_run(tmp_path / "metrics", [0.5, 0.75], **left, **settings) for settings in different]
    change(tmp_path / "metrics", names[1], finished=False, settings={"n_epochs": 4})
    change(tmp_path / "metrics", names[2], finished=False, failed="no space left")
    return tmp_path / "metrics"


def said_by(function, *given):
    lines = []
    function(*given, say=lines.append)
    return "\n".join(lines)


def test_a_line_a_run_by_hand(folder):
    first, second, third, counts = said_by(run_list.print_runs, folder).splitlines()
    assert first.split()[:9] == ["1", "finished", "2/2", "75.00%", "8.00", "MB", "up", "32.00", "in"]
    assert second.split()[:3] == ["2", "stopped", "2/4"]
    assert third.split()[:3] == ["3", "failed", "2/2"]
    assert counts == "1 finished, 1 stopped, 1 failed"
    found, _ = run_list.table(folder.parent)  # an --out folder
    assert found["to_go"].tolist() == [0.0, 6.0, 0.0]  # with evaluation


def test_a_run_that_is_going_on_has_so_long_to_go(folder):
    name = run_list.table(folder)[0]["run"][1]
    with locks.exclusively(folder / f".{name}.lock", name):
        line = said_by(run_list.print_runs, folder).splitlines()[1]
        assert "running " in line
        assert "6 s to go" in line
        with pytest.raises(InputError, match="is running"):
            run_list.remove(folder, [name], lambda _: True)


def test_what_is_no_run_is_said(folder):
    (folder / "odd.json").write_text("{}")
    assert "odd.json: it does not say whether it is finished" in said_by(run_list.print_runs, folder)
    assert said_by(run_list.print_runs, folder).count("\n") == 4


def test_a_run_is_found_by_its_number_name_part_of_it_or_file(folder):
    names = run_list.table(folder)[0]["run"].tolist()
    for wanted in ("3", names[2], "las_", str(folder / f"{names[2]}.json")):
        assert run_list.find(folder, wanted)[1] == names[2]
    assert run_list.find(folder, names[0])[1] == names[0]  # though the second begins so, too
    with pytest.raises(InputError, match="fedavg is in the name of 2 runs: fedavg_DIGITS"):
        run_list.find(folder, "fedavg")
    for wanted, why in (("4", "no run 4: .* has 3"), ("0", "no run 0"), ("nobody", "no run nobody")):
        with pytest.raises(InputError, match=why):
            run_list.find(folder, wanted)


def test_all_of_a_run_is_shown_and_its_split_is_drawn(folder):
    text = said_by(run_list.show, folder, "las")
    assert "failed" not in text.splitlines()[1:3]
    assert text.splitlines()[0].endswith(": no space left")
    assert "\n  sparsity                 0.2\n" in text
    assert "\n  commit                   0123456789abcdef\n" in text
    assert text.endswith("split None: 2 clients, 11 samples\n  class   0 |@-|\n  class   1 | @|")


def test_a_split_that_the_record_does_not_tell_is_not_drawn():
    for histograms in (None, [], [[1], [1, 2]], [["1"]], [1]):
        assert run_list.drawn({"histograms": histograms}) == ["the record does not tell its split"]
    *_, last, rest = run_list.drawn({"histograms": [[0, 1]] * 300})
    assert last == "  class   1 |" + "@" * 100 + "|"
    assert rest == "  (the first 100 of 300 clients and 2 classes)"


def test_only_what_differs_is_compared(folder):
    names = run_list.table(folder)[0]["run"].tolist()
    lines = said_by(run_list.diff, folder, names[0], "las").splitlines()
    told = {line.split()[0]: line.split()[1:] for line in lines[3:] if line}
    assert told["algorithm"] == ["fedavg", "las"]
    assert told["sparsity"] == ["-", "0.2"]
    assert told["f1"] == ["0.375", "0.375", "+0"]
    assert "seed" not in told
    assert "  the same settings" in said_by(run_list.diff, folder, names[0], names[0])


def test_what_a_run_left_is_removed_and_nothing_else(folder):
    base, (name, other, _) = folder.parent, run_list.table(folder)[0]["run"].tolist()
    for path in (base / "p" / f"{name}_loss_curves.png", base / "c" / f"{name}.pt", base / "c" / f"{name}.previous.pt"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
        path.with_name(path.name.replace(name, other)).touch()
    assert other.startswith(name)
    results_csv.add_results(base / "r.csv", [{"run": name, "accuracy": 0.5}, {"run": other, "accuracy": 0.25}])
    before = {path for path in base.rglob("*") if path.is_file()}
    assert run_list.remove(folder, [name], lambda question: False, say=lambda _: None) == 0
    assert {path for path in base.rglob("*") if path.is_file()} == before
    assert run_list.remove(folder, [name], lambda question: True, say=lambda _: None) == 1
    gone = {path.name for path in before - {path for path in base.rglob("*") if path.is_file()}}
    ends = (".json", "_metrics.csv", "_loss_curves.png", ".pt", ".previous.pt")
    assert gone == {f"{name}{end}" for end in ends}
    assert pd.read_csv(base / "r.csv")["run"].tolist() == [other]


def test_nothing_is_removed_of_tables_or_where_one_of_several_is_not_there(folder):
    names = run_list.table(folder)[0]["run"].tolist()
    with pytest.raises(InputError, match="there is no run nobody"):
        run_list.remove(folder, [names[0], "nobody"], lambda _: True)
    with pytest.raises(InputError, match="its runs are in tables"):
        run_list.remove(ROOT / "results" / "las_pretrained", ["1"], lambda _: True)
    assert len(list(folder.glob("*.json"))) == 3


@pytest.mark.slow
def test_the_program_lists_asks_and_says_what_is_wrong(folder):
    def run(*words, answer=""):
        command = [sys.executable, "-m", "fedmerge", *map(str, words)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, input=answer)

    assert run("runs", folder).stdout.endswith("1 finished, 1 stopped, 1 failed\n")
    refused = run("show", "x", "--csv_dir", folder)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert run("rm", "las", "--csv_dir", folder, answer="\n").returncode == 1
    assert run("rm", "las", "--csv_dir", folder, answer="y\n").returncode == 0
    assert len(list(folder.glob("*.json"))) == 2
    assert run("runs", folder / "nowhere").stderr == f"python -m fedmerge: error: {folder / 'nowhere'}: is no folder\n"


def test_nothing_of_it_needs_torch():
    code = "import sys, fedmerge.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_record_without_settings_is_refused(folder, capsys):
    name = run_list.table(folder)[0]["run"][0]
    (folder / f"{name}.json").write_text(json.dumps({"finished": True}))
    assert program.program(["show", name, "--csv_dir", str(folder)]) == 2
    assert capsys.readouterr().err == "python -m fedmerge: error: 'None' is no name of a algorithm\n"


def test_a_copy_of_a_record_has_no_files_of_its_own(folder, tmp_path):
    name = run_list.table(folder)[0]["run"][0]
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / f"{name}.pt").touch()
    results_csv.add_results(tmp_path / "r.csv", [{"run": name}])
    shutil.copytree(folder, tmp_path / "copy")
    assert run_list.remove(tmp_path / "copy", [name], lambda _: True, say=lambda _: None) == 1
    assert not (tmp_path / "copy" / f"{name}.json").exists()
    assert (tmp_path / "c" / f"{name}.pt").exists()
    assert (folder / f"{name}.json").exists()
    assert len(pd.read_csv(tmp_path / "r.csv")) == 1


def test_a_run_that_is_named_twice_is_removed_once_and_two_of_one_name_both(folder, tmp_path):
    name = run_list.table(folder)[0]["run"][0]
    shutil.copytree(folder, tmp_path / "copy")
    both = [str(path / f"{name}.json") for path in (folder, tmp_path / "copy")]
    assert run_list.remove(folder, ["1", name, *both], lambda _: True, say=lambda _: None) == 2
    assert not (folder / f"{name}.json").exists()
    assert not (tmp_path / "copy" / f"{name}.json").exists()


@pytest.mark.parametrize("content", ['{"clients": []}', '{"settings": ["x"]}', "[]"])
def test_what_is_no_record_of_a_run_is_not_removed(folder, content):
    (folder / "clients.json").write_text(content)
    with pytest.raises(InputError):
        run_list.remove(folder, ["clients"], lambda _: True)
    with pytest.raises(InputError, match="there is no run"):
        run_list.remove(folder, [""], lambda _: True)
    assert (folder / "clients.json").exists()


def test_nothing_in_a_record_steers_the_terminal(folder):
    name = run_list.table(folder)[0]["run"][0]
    change(folder, name, finished=False, failed="\x1b[31mred", final={"\x1b[2J": 1})
    assert "\x1b" not in said_by(run_list.show, folder, name)


def test_where_nobody_is_asked_a_part_of_a_name_is_not_enough(folder):
    with pytest.raises(InputError, match="there is no run las"):
        run_list.remove(folder, ["las"], say=lambda _: None)
    assert run_list.remove(folder, ["3"], say=lambda _: None) == 1
