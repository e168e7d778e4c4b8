"""experiments.txt, the shell scripts, and the commands the README tells people to type."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import utils


@pytest.fixture
def launch(tmp_path):
    """A function of arguments -> finished run_experiments.sh, with a stand-in for Python that prints its arguments."""
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\nfor a in "$@"; do printf "<%s>" "$a"; done; echo\ncase "$*" in *fail*) exit 1;; esac\n'
    )
    python.chmod(0o755)
    (tmp_path / "experiments.txt").write_text("# title\n\n--a 1 # why\n  --b $(touch evil) `x` *\n   # more\n--c fail")

    def run(*arguments, **environment):
        variables = {"PYTHON": str(python), "EXPERIMENTS": str(tmp_path / "experiments.txt"), **environment}
        env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")} | variables
        return subprocess.run([ROOT / "run_experiments.sh", *arguments], env=env, capture_output=True, text=True)

    return run


def test_line_n_is_the_nth_experiment(launch):
    assert launch("--count").stdout == "3\n"
    assert "<fedalg.py><--a><1>\n" in launch("1").stdout
    assert "<fedalg.py><--b><$(touch><evil)><`x`><*>\n" in launch("2").stdout  # given to no shell
    assert not (ROOT / "evil").exists()
    assert "<fedalg.py><--a><1><--quiet><--seed><5>\n" in launch("1", EXTRA="--quiet --seed 5").stdout
    task = launch(SLURM_ARRAY_TASK_ID="2", SLURM_SUBMIT_DIR=str(ROOT))
    assert "<--b>" in task.stdout
    assert "<--a>" not in task.stdout


def test_without_slurm_all_lines_run_and_a_failed_one_is_named(launch):
    done = launch()
    assert done.returncode == 1
    assert [line.split("<")[2] for line in done.stdout.splitlines() if line.startswith("<")] == ["--a>", "--b>", "--c>"]
    assert "failed: 3" in done.stderr


@pytest.mark.parametrize("n", ["0", "4", "x", "1x", ""])
def test_there_is_no_such_experiment(launch, n):
    done = launch(n)
    assert done.returncode == 2
    assert "1 to 3" in done.stderr


def lines_of(file):
    return [line for line in (re.sub("#.*", "", text).strip() for text in file.read_text().splitlines()) if line]


def test_the_grid_is_whole_parses_and_fits_the_array():
    lines = lines_of(ROOT / "experiments.txt")
    runs = [utils.parse_args(line.split()) for line in lines]
    assert len({utils.run_name(args) for args in runs}) == 4 * 2 * 4 * 3
    assert {args.algorithm for args in runs} == {"fedavg", "fedprox", "fedacg", "las"}
    assert f"#SBATCH --array=1-{len(lines)}" in (ROOT / "run_experiments.sh").read_text()


def commands_of_the_readme():
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize("command", [c for c in commands_of_the_readme() if "fedalg.py" in c])
def test_the_readmes_command_lines_parse(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for weights in re.findall(r"--save_weights (\S+)", "\n".join(commands_of_the_readme())):
        Path(weights).touch()  # as if the command that writes it had run
    words = shlex.split(command, comments=True)
    utils.parse_args(words[words.index("fedalg.py") + 1 :])


def test_the_readme_names_only_files_that_are_there():
    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / path).exists(), path


def test_the_readmes_worked_example_is_an_algorithm(tmp_path):
    """Paste it into a copy, and nothing else: it must have its flag, train, and be FedAvg without momentum."""
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    with open(tmp_path / "agg_utils.py", "a") as file:
        file.write("\n\n" + example)
    flags = ["--n_epochs", "3", "--n_client_epochs", "1", "--batch_size", "16", "--norm", "batch"]
    last = []
    for algorithm in (["fedavgm", "--server_beta", "0"], ["fedavg"], ["fedavgm"]):
        command = [sys.executable, "fedalg.py", "--algorithm", *algorithm, *flags]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        last.append(re.search("test accuracy ([0-9.]+), F1 ([0-9.]+)", done.stdout).groups())
    assert last[0] == last[1] != last[2]
