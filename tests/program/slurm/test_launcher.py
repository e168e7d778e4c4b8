"""run_experiments.sh on a real SLURM: tasks that are requeued, reach their time limit or are cancelled lose nothing."""

import csv
import json
import os
import shutil
import sys
import time

import cluster
import pytest
from conftest import ROOT

TIMES = {"train_seconds", "eval_seconds", "train_time"}
FEW = "--dataset DIGITS --n_clients 2 --participation 0.5 --local_steps 1 --eval_every 50"
LONG = {2: 150, 3: 600}  # line -> rounds; the third still trains when SLURM looks for time limits, every 30 s
PAUSE = """

at_once = merge


def merge(*given):
    import time

    time.sleep(0.05)
    return at_once(*given)
"""
NO_FIGURES = """

def plot_run(*_):
    return "no figures"
"""
SITE = {"PYTHON": sys.executable, "EXTRA": "--quiet --device cpu", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def slurm(tmp_path):
    why = cluster.missing()
    if why:
        pytest.skip(why)
    made = cluster.Cluster(tmp_path / "slurm", max_array=4)  # so that four lines take two array jobs
    yield made
    made.stop()


@pytest.fixture
def project(tmp_path):
    """A copy of the program with four experiments; rounds take as long as on a slow machine, no run draws figures."""
    folder = tmp_path / "project"
    (folder / "logs").mkdir(parents=True)
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*.sh")]:
        shutil.copy(path, folder)
    shutil.copytree(ROOT / "fedmerge", folder / "fedmerge", ignore=shutil.ignore_patterns("__pycache__"))
    with open(folder / "agg_utils.py", "a") as file:
        file.write(PAUSE)
    with open(folder / "fedmerge" / "reporting" / "run_figures.py", "a") as file:
        file.write(NO_FIGURES)
    lines = [f"--algorithm las --n_epochs {LONG.get(n, 3)} --seed {n} {FEW}" for n in range(1, 5)]
    (folder / "experiments.txt").write_text("# four\n" + "\n".join(lines) + "\n")
    return folder


@pytest.fixture
def until(slurm, project):
    """until(there) waits until there() is true."""

    def wait(there, seconds=180):
        end = time.monotonic() + seconds
        while not there():
            state = slurm.run("squeue", "-r")
            assert time.monotonic() < end, (state, *(log.read_text() for log in (project / "logs").iterdir()))
            time.sleep(0.5)

    return wait


def jobs(slurm):
    """Return task -> state of those that SLURM still has."""
    return dict(row.split() for row in slurm.run("squeue", "-r", "-h", "-o", "%i %T").splitlines())


@pytest.fixture
def again(slurm, until):
    """again(task, name=value, ...) lets a requeued task start at once, not after SLURM's two minutes."""

    def start(task, **changes):
        # While it completes, a task is among the pending ones too, and gets its two minutes only after that. One that
        # starts in the second in which it ended is taken for the one that ended.
        until(lambda: jobs(slurm).get(task) == "PENDING")
        time.sleep(3)
        words = [f"{name}={value}" for name, value in {"StartTime": "now", **changes}.items()]

        def under_way():
            if jobs(slurm).get(task) != "PENDING":
                return True
            slurm.run("scontrol", "update", f"JobId={task}", *words, check=False)  # refused if it has just started
            return False

        until(under_way)

    return start


def outcomes(folder):
    """Run -> what it left, times aside."""
    with open(folder / "results.csv", newline="") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    found = {}
    for path in (folder / "metrics").glob("*.json"):
        record = json.loads(path.read_text())
        with open(folder / "metrics" / f"{path.stem}_metrics.csv", newline="") as file:
            table = list(csv.DictReader(file))
        for content in (record["final"], rows[path.stem], *table):
            for name in TIMES & set(content):
                del content[name]
        found[path.stem] = record["finished"], record["final"], record["traffic"], table, rows[path.stem]
    assert len(found) == len(rows)
    return found


def test_four_runs_under_slurm_end_as_without_it(slurm, project, tmp_path, until, again):
    def run(*words, **env):
        return slurm.run(*words, cwd=project, **SITE, **env)

    def state_of(line):
        table = run("./run_experiments.sh", "--status").splitlines()
        return next(row for row in table if row.split()[0] == str(line))[6:]

    alone = tmp_path / "alone"
    shutil.copytree(project, alone)
    without = slurm.start("./run_experiments.sh", cwd=alone, **SITE)

    few = ("--gres=none", "--cpus-per-task=1", "--mem-per-cpu=900", "--time=50")
    run("sbatch", *few, "run_experiments.sh")
    until(lambda: [("_" in task) for task in jobs(slurm)] == [True] * 4)  # and the one that submitted them is through
    first, second = sorted({task.split("_")[0] for task in jobs(slurm)}, key=int)
    given = set(run("squeue", "-h", "-r", "-o", "%l %b %C %m").splitlines())
    assert given == {"50:00 N/A 1 900M"}  # as was asked for the job that submitted them

    until(lambda: "running, after round" in state_of(2) and "after round 0" not in state_of(2))
    run("scontrol", "requeue", f"{first}_2")
    again(f"{first}_2")

    until(lambda: "running, after round" in state_of(3) and "after round 0" not in state_of(3))
    run("scontrol", "update", f"JobId={first}_3", "TimeLimit=2")  # two minutes before it comes the signal
    log = project / "logs" / f"fedalg_{first}_3.out"
    until(lambda: "near its time limit, goes back into the queue" in log.read_text())
    assert "stopped by SIGUSR1 after round" in log.read_text()
    again(f"{first}_3", TimeLimit=50)

    until(lambda: jobs(slurm).get(f"{first}_3") == "RUNNING")
    run("scancel", first, second)
    until(lambda: not jobs(slurm))
    states = [state_of(n) for n in range(1, 5)]
    assert states[2].startswith("stopped after round")
    left = [n for n, state in enumerate(states, 1) if not state.startswith("done")]

    run("sbatch", *few, "run_experiments.sh", PLOT="1")
    until(lambda: any("plotting" in line for line in run("squeue", "-h", "-o", "%j").splitlines()))
    tasks = [task for task in jobs(slurm) if "_" in task]
    assert len(tasks) == len(left)  # only what is missing
    until(lambda: not jobs(slurm))
    assert run("./run_experiments.sh", "--status").splitlines()[-1] == "4 done"
    assert "goes on after round" in "".join(path.read_text() for path in (project / "logs").iterdir())
    assert (project / "final_plots" / "DIGITS_summary.csv").exists()
    assert "all 4 experiments are finished" in run("./run_experiments.sh", "--submit")

    assert without.wait() == 0
    assert outcomes(alone) == outcomes(project)
    assert not os.listdir(project / "checkpoints") or not list((project / "checkpoints").glob("*.pt"))


def test_a_task_that_is_pre_empted_saves_its_run_and_goes_on(slurm, project, tmp_path, until, again):
    """The urgent job gets the CPUs after five seconds' grace, or when SLURM next looks: every 30 s.

    All of it is called from a folder that is not the program's.
    """
    caller, launcher = tmp_path / "the caller's", project / "run_experiments.sh"
    (caller / "logs").mkdir(parents=True)
    (caller / "experiments.txt").write_text(f"--algorithm las --n_epochs 10000 --seed 1 {FEW}\n")

    def run(*words):
        return slurm.run(*words, cwd=caller, **SITE)

    run("sbatch", "--gres=none", "--cpus-per-task=2", "--mem-per-cpu=900", "--time=50", launcher)
    until(lambda: "running, after round" in run(launcher, "--status").replace("round 0", ""))
    task = run("squeue", "-r", "-h", "-o", "%i").split()[0]
    run(
        "sbatch",
        "--partition=urgent",
        "--cpus-per-task=2",
        "--mem-per-cpu=900",
        "--output=urgent",
        "--wrap=echo ran; sleep 1",
    )
    until(lambda: (caller / "urgent").exists())
    until(lambda: "urgent" not in run("squeue", "-h", "-o", "%P"))
    log = caller / "logs" / f"fedalg_{task}.out"
    assert "stopped by SIGTERM after round" in log.read_text()
    again(task)
    until(lambda: "goes on after round" in log.read_text())
    run("scancel", task)
    until(lambda: not run("squeue", "-h").strip())
    assert "1 stopped" in run(launcher, "--status")


def test_a_run_of_two_processes_is_signalled_and_goes_on(slurm, project, tmp_path, until, again):
    (project / "experiments.txt").write_text(f"--algorithm las --preset compact --n_epochs 100 --seed 1 {FEW}\n")

    def run(*words, **env):
        return slurm.run(*words, cwd=project, **SITE, **env)

    few = ("--gres=none", "--cpus-per-task=1", "--mem-per-cpu=900", "--time=50")
    run("sbatch", *few, "run_experiments.sh", GPUS_PER_RUN="2")
    until(lambda: "running, after round" in run("./run_experiments.sh", "--status").replace("round 0", ""))
    (line,) = run("squeue", "-r", "-h", "-o", "%i %C %b %D").splitlines()
    task, *given = line.split()
    assert given == ["2", "N/A", "1"]
    run("scancel", "--signal=USR1", "--batch", task)
    log = project / "logs" / f"fedalg_{task}.out"
    until(lambda: "near its time limit, goes back into the queue" in log.read_text())
    assert "stopped by SIGUSR1 after round" in log.read_text()
    again(task)
    until(lambda: "1 done" in run("./run_experiments.sh", "--status"))
    assert "goes on after round" in log.read_text()
    alone = tmp_path / "alone"
    shutil.copytree(
        project, alone, ignore=lambda _, names: {"metrics", "plots", "checkpoints", "results.csv"} & set(names)
    )
    slurm.run("./run_experiments.sh", cwd=alone, **SITE)
    assert outcomes(alone) == outcomes(project)
