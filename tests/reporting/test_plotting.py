"""plotting.py as a user meets it."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT
from made_runs import change, write_run

import plotting
from fedmerge.reporting import curves


@pytest.fixture
def metrics(tmp_path):
    folder = tmp_path / "metrics"
    write_run(folder, [0.2, 0.4], seed=0)
    write_run(folder, [0.4, 0.8], seed=1)
    return folder


@pytest.fixture
def quick(monkeypatch):
    """Figures take a second each: only their names."""
    monkeypatch.setattr(curves, "draw_train_val", lambda *_: None)
    monkeypatch.setattr(curves, "save", lambda figure, path, _: (curves.plt.close(figure), Path(path).touch()))


def test_the_program_prints_the_tables_and_says_what_it_left_out(metrics, tmp_path, program):
    (metrics / "foreign.json").write_text('{"hello": 1}')
    done = program("--csv_dir", metrics, "--output_dir", tmp_path / "out", "--dataset", "DIGITS", script="plotting.py")
    assert done.returncode == 0, done.stderr
    assert "60.00 ± 28.28" in done.stdout
    assert "99 % of the test accuracy of the reference" in done.stdout
    assert "Left out: 1 file of the folder that is no record of a run." in done.stdout
    assert "foreign.json: left out" in done.stderr
    assert (tmp_path / "out" / "DIGITS_iid_comparison.png").exists()


def test_it_says_what_there_is_instead(metrics, tmp_path, capsys):
    assert plotting.program(["--csv_dir", str(metrics), "--dataset", "digits"]) == 2
    assert capsys.readouterr().err.endswith("only of DIGITS (did you mean DIGITS?)\n")
    assert plotting.program(["--csv_dir", str(tmp_path / "none")]) == 2
    assert "run fedalg.py first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--ylim 70 40", "--ylim"),
        ("--width 0.1", "--width"),
        ("--font 100", "--font"),
        ("--label old", "is not OLD=NEW"),
        ("--methods mine", "--methods 'mine': there is no such series; there are 'FedAvg'"),
        ("--reference mine", "--reference 'mine'"),
        ("--label a=b", "--label 'a=b'"),
    ],
)
def test_flags_that_make_no_sense_are_refused_in_one_line(metrics, tmp_path, capsys, flags, said):
    assert plotting.program(["--csv_dir", str(metrics), "--output_dir", str(tmp_path / "out"), *flags.split()]) == 2
    said_so = capsys.readouterr().err
    assert said in said_so
    assert said_so.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_two_conventions_are_refused_unless_asked_for(metrics, tmp_path, capsys, quick):
    write_run(metrics, [0.5, 0.6], algorithm="stc", shared_init=True)
    for seed in (0, 1):
        change(metrics, write_run(metrics, [0.5, 0.6], seed=seed), settings={"shared_init": False})
    flags = ["--csv_dir", str(metrics), "--output_dir", str(tmp_path / "out")]
    assert plotting.program(flags) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        "plotting.py: error: DIGITS: the first download of the model counts in FedAvg shared_init=False"
    )
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert plotting.program([*flags, "--methods", "stc"]) == 0
    assert plotting.program([*flags, "--mix"]) == 0
    assert "MIXED" in (tmp_path / "out" / "DIGITS_summary.md").read_text()


def test_one_dataset_that_cannot_be_drawn_stops_no_other(metrics, tmp_path, capsys, quick):
    write_run(metrics, [0.5, 0.9], algorithm="centralised", dataset="DIGITSA")
    write_run(metrics, [0.5, 0.9], algorithm="stc", dataset="DIGITSB", shared_init=True)
    change(metrics, write_run(metrics, [0.5, 0.9], dataset="DIGITSB"), settings={"shared_init": False})
    change(metrics, write_run(metrics, [0.5, 0.9], dataset="CIFAR10"), finished=False)
    assert plotting.program(["--csv_dir", str(metrics), "--output_dir", str(tmp_path / "out")]) == 2
    found = capsys.readouterr()
    assert "error: DIGITSB: the first download" in found.err
    assert "CIFAR10: no finished run, but 1 stopped" in found.err
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"DIGITS_summary.md", "DIGITSA_summary.md"} <= written
    assert "DIGITSA, summary" in found.out


def test_names_in_a_record_are_no_paths(metrics, tmp_path, quick):
    name = write_run(metrics, [0.5], seed=5)
    change(metrics, name, settings={"dirichlet": None}, partition={"name": "../../../$x$ | \\y"})
    pwned = write_run(metrics, [0.5], seed=6)
    change(metrics, pwned, settings={"dataset": "../../../elsewhere"})
    before = {path for path in tmp_path.rglob("*") if metrics not in path.parents}
    assert plotting.program(["--csv_dir", str(metrics), "--output_dir", str(tmp_path / "out" / "in")]) == 0
    new = {path for path in tmp_path.rglob("*") if metrics not in path.parents} - before
    assert {path.parent for path in new if path.is_file()} == {tmp_path / "out" / "in"}
    latex = (tmp_path / "out" / "in" / "DIGITS_summary.tex").read_text()
    assert "\n" + r"../../../\$x\$ | \textbackslash{}y &" in latex


def test_different_names_give_different_files():
    names = ["a/b", "a-b", "a_b", ".ab", "-ab", "a" * 300, "a" * 301, "a\\b", "é"]
    files = {plotting.file_name(name) for name in names}
    assert len(files) == len(names)
    assert all(len(file) <= 120 and not file.startswith(".") and set(file).isdisjoint("/\\_é") for file in files)
    assert plotting.file_name("CIFAR10") == "CIFAR10"
    assert plotting.file_name("feature_0.1", "_") == "feature_0.1"


def test_labels_with_formulas_are_drawn_as_they_are(metrics, tmp_path):
    flags = ["--csv_dir", str(metrics), "--output_dir", str(tmp_path / "out"), "--panels", "round"]
    assert plotting.program([*flags, "--label", r"FedAvg=$\frac$ _x", "--width", "4", "--font", "8"]) == 0


@pytest.mark.slow
def test_a_reader_that_leaves_ends_it_quietly(metrics, tmp_path):
    command = [sys.executable, str(ROOT / "plotting.py"), "--csv_dir", metrics, "--output_dir", tmp_path / "out"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141
    assert (tmp_path / "out" / "DIGITS_summary.md").exists()


def test_a_split_made_by_hand_is_named_everywhere(metrics, tmp_path, quick):
    for seed in (0, 1):
        name = write_run(metrics, [0.3, 0.3], seed=seed, dataset="DIGITSA")
        split = {"dirichlet": None, "partition_file": f"patho_{seed}.json"}
        change(metrics, name, settings=split, partition={"name": "patho"})
    flags = ["--csv_dir", str(metrics), "--output_dir", str(tmp_path / "out"), "--dataset", "DIGITSA"]
    assert plotting.program(flags) == 0
    (row,) = [line for line in (tmp_path / "out" / "DIGITSA_summary.csv").read_text().splitlines() if "FedAvg" in line]
    assert row.startswith("DIGITSA,patho,FedAvg,2,2,30.00 ± 0.00")


@pytest.mark.slow
def test_a_list_that_has_just_begun_is_drawn(tmp_path, capsys):
    """Its seeds share round 1 only, before which nothing was sent down: there is no line for that panel."""
    for seed, n in ((0, 1), (1, 3)):
        name = write_run(tmp_path / "m", [0.3, 0.4, 0.5], seed=seed)
        change(tmp_path / "m", name, finished=False)
        path = tmp_path / "m" / f"{name}_metrics.csv"
        rows = pd.read_csv(path).head(n)
        rows.loc[0, "bytes_down"] = 0
        rows.to_csv(path, index=False)
    out = ["--csv_dir", str(tmp_path / "m"), "--output_dir", str(tmp_path / "out")]
    assert plotting.main([*out, "--unfinished"]) == 0
    assert plotting.main([*out, "--unfinished", "--panels", "down"]) == 0
    assert (tmp_path / "out" / "DIGITS_iid_comparison.png").exists()


@pytest.mark.slow
def test_what_goes_wrong_with_one_dataset_does_not_stop_the_others(tmp_path, capsys, monkeypatch):
    write_run(tmp_path / "m", [0.3])
    write_run(tmp_path / "m", [0.3], dataset="DIGITSB")
    draw = curves.draw_comparison

    def fails(found, path, *given, **more):
        if "DIGITSB" not in str(path):
            raise RuntimeError("of a library")
        return draw(found, path, *given, **more)

    monkeypatch.setattr(curves, "draw_comparison", fails)
    assert plotting.main(["--csv_dir", str(tmp_path / "m"), "--output_dir", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.endswith("error: DIGITS: RuntimeError: of a library\n")
    assert (tmp_path / "out" / "DIGITSB_iid_comparison.png").exists()


@pytest.mark.slow
def test_a_terminal_without_all_characters_gets_the_tables(tmp_path):
    write_run(tmp_path / "m", [0.3])
    done = subprocess.run(
        [sys.executable, ROOT / "plotting.py", "--csv_dir", "m", "--output_dir", "out"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert "\\xb1 is the standard deviation" in done.stdout


@pytest.mark.parametrize("flags", [[], ["--rebuild_results", "r.csv"], ["--pack", "t"]], ids=str)
def test_a_plugin_that_is_not_there_is_said_as_itself(metrics, tmp_path, capsys, monkeypatch, flags):
    monkeypatch.setenv("FEDMERGE_PLUGINS", "/nowhere")
    monkeypatch.chdir(tmp_path)
    assert plotting.program(["--csv_dir", str(metrics), *flags]) == 2
    said = "plotting.py: error: FEDMERGE_PLUGINS: /nowhere: there is no such file or folder\n"
    assert capsys.readouterr().err == said
    assert not (tmp_path / "r.csv").exists()
