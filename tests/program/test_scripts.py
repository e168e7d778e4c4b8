"""experiments.txt, the launcher, and what is told of the lines of a list."""

import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from fedmerge import locks, saving
from fedmerge.config.parser import parse_args
from fedmerge.config.run_name import run_name, settings_of
from fedmerge.reporting import run_status

BATCH = {"ENVIRONMENT": "BATCH", "SLURM_SUBMIT_DIR": str(ROOT)}  # what a batch job has

# Until $AT_ONCE of them have begun, or for 30 seconds.
WAIT = 'echo >>"$BEGUN"; for i in $(seq 300); do [ $(wc -l <"$BEGUN") -lt $AT_ONCE ] || exit 0; sleep 0.1; done; exit 1'
STAND_IN = f"""#!/bin/sh
case "$2" in fedmerge.reporting.run_status) exec "{sys.executable}" "$@";; esac
for a in "$@"; do printf "<%s>" "$a" | sed "s|<.*/fedalg.py>|<fedalg.py>|"; done
echo
case "$*" in *fail*) exit 1;; *elsewhere*) exit 73;; *slow*) echo "threads $OMP_NUM_THREADS"; {WAIT};; esac
"""


@pytest.fixture
def launch(tmp_path):
    """A function of arguments -> finished run_experiments.sh, with a stand-in for Python that runs run_status, and
    else prints its arguments."""
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    (tmp_path / "experiments.txt").write_text("# title\n\n--a 1 # why\n  --b $(touch evil) `x` *\n   # more\n--c fail")

    def run(*arguments, script=ROOT / "run_experiments.sh", cwd=ROOT, **environment):
        variables = {"PYTHON": str(python), "EXPERIMENTS": str(tmp_path / "experiments.txt"), **environment}
        env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "OMP_"))} | variables
        return subprocess.run([script, *arguments], env=env, cwd=cwd, capture_output=True, text=True)

    return run


def test_line_n_is_the_nth_experiment(launch):
    assert launch("--count").stdout == "3\n"
    assert "<fedalg.py><--a><1>\n" in launch("1").stdout
    assert "<fedalg.py><--b><$(touch><evil)><`x`><*>\n" in launch("2").stdout  # given to no shell
    assert not (ROOT / "evil").exists()
    assert "<fedalg.py><--a><1><--quiet><--seed><5>\n" in launch("1", EXTRA="--quiet --seed 5").stdout
    task = launch(SLURM_ARRAY_TASK_ID="2", SLURM_ARRAY_JOB_ID="7", SLURM_JOB_ID="8", **BATCH)
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


@pytest.fixture
def slurm_commands(tmp_path):
    """Stand-ins for SLURM's commands, which print what they are given; the environment that finds them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    answers = {
        "sbatch": 'echo "sbatch $*" >&2; for n; do :; done; case $n in [0-9]*) echo "$((41 + n));cluster";; esac',
        "scontrol": 'echo "MaxArraySize            = ${MAX:-1001}"; [ -z "$COMMAND" ] || echo "   Command=$COMMAND"',
        "squeue": 'case "$*" in *%l) echo 3-00:00:00;; *%b) echo "${GRES:-gres:gpu:a100:2}";; *) echo ${Q:-N/A};; esac',
    }
    for name, answer in answers.items():
        (folder / name).write_text(f"#!/bin/sh\n{answer}\n")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.fixture
def digits(tmp_path):
    """A list of four experiments, and the variables with which the launcher runs them for real."""
    lines = [f"--n_epochs 1 --n_client_epochs 1 --local_steps 1 --seed {n} --quiet" for n in range(4)]
    (tmp_path / "digits.txt").write_text("\n".join(lines))
    folders = {"metrics_dir": "m", "plots_dir": "p", "checkpoint_dir": "c", "results_file": "r.csv"}
    where = " ".join(f"--{name} {tmp_path / file}" for name, file in folders.items())
    return {"PYTHON": sys.executable, "EXPERIMENTS": str(tmp_path / "digits.txt"), "EXTRA": where}


def test_what_is_not_finished_is_submitted_and_told(launch, slurm_commands, digits, tmp_path):
    assert "sbatch --parsable --array=1-4 " in launch("--submit", **slurm_commands, **digits).stderr
    assert launch("2", **digits).returncode == 0
    done = launch("--submit", **slurm_commands, **digits)
    assert "--array=1-1,3-4 " in done.stderr
    assert f"sbatch --dependency=afterany:41 {ROOT}/plotting.sh --csv_dir {tmp_path}/m\n" in done.stdout
    table = launch("--status", **digits).stdout.splitlines()
    assert [row.split()[1] for row in table[:4]] == ["not", "done", "not", "not"]
    assert table[-1] == "1 done, 3 not started"


def test_a_job_submits_an_array_like_itself(launch, slurm_commands, digits):
    job = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_PARTITION": "long",
        "SLURM_MEM_PER_CPU": "900",
        **BATCH,
    }
    done = launch(**slurm_commands, **digits, **job, SLURM_JOB_ACCOUNT="lab", SLURM_CPUS_PER_TASK="3")
    (words,) = done.stderr.splitlines()
    for flag in ("--partition=long", "--time=3-00:00:00", "--gres=gpu:a100:2", "--account=lab", "--cpus-per-task=3"):
        assert f" {flag} " in words
    assert " --mem-per-cpu=900 " in words
    assert " --qos" not in words
    assert " --constraint" not in words
    done = launch(**slurm_commands, **digits, **job, GRES="N/A", Q="fast", PLOT="1")
    assert " --qos=fast --constraint=fast " in done.stderr
    assert " --gres=none " in done.stderr
    assert f"sbatch --dependency=afterany:41 --partition=long --qos=fast {ROOT}/plotting.sh --csv_dir " in done.stderr
    interactive = launch(**slurm_commands, **{**job, "ENVIRONMENT": ""})
    assert interactive.stderr == "run_experiments.sh: failed: 3\n"  # runs them here


def test_more_lines_than_an_array_may_have_are_several_arrays(launch, slurm_commands, digits):
    done = launch("--submit", **slurm_commands, **digits, MAX="3")
    assert re.findall(rf"--array=(\S+) .* --task {ROOT} (\d)", done.stderr) == [("1-2", "0"), ("1-2", "2")]
    assert "afterany:41:43" in done.stdout
    job = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_JOB_ID": "7", "SLURM_JOB_ID": "8", **BATCH}
    task = launch("--task", str(ROOT), "2", **job)
    assert "<--c>" in task.stdout


@pytest.mark.parametrize("setup", ["module load python/3.11", "conda activate fl"])
def test_an_environment_is_set_up_before_python_is_looked_for(launch, tmp_path, setup):
    """With stand-ins for `module` and `conda` that do what these do: put another folder into the PATH, carelessly."""
    folder = tmp_path / "environment"
    folder.mkdir()
    (folder / "python3").write_text(STAND_IN.replace("for a in", 'echo "of the environment: $*"; for a in'))
    (folder / "python3").chmod(0o755)
    (tmp_path / "setup.sh").write_text(
        f'module() {{ export PATH="{folder}:$PATH$NOT_SET"; }}\nconda() {{ module; }}\n{setup}\n'
    )
    done = launch("1", SETUP=str(tmp_path / "setup.sh"), PYTHON="python3")
    assert f"of the environment: {ROOT}/fedalg.py --a 1" in done.stdout


def test_the_state_of_each_line(tmp_path):
    lines = ["--seed 1", "--seed 2", "--seed 3", "--seed 4", "--lr -1", "--seed 6 # twice", "--seed 7"]
    lines = [f"--n_epochs 5 --metrics_dir {tmp_path} {line}" for line in lines]
    args = [parse_args(line.split("#")[0].split()) if "--lr" not in line else None for line in lines]
    names = [each and run_name(each) for each in args]

    def leave(n, rows=3, **more):
        record = {"settings": settings_of(args[n]), "finished": False, "failed": None, **more}
        saving.write_json(tmp_path / f"{names[n]}.json", record)
        (tmp_path / f"{names[n]}_metrics.csv").write_text("epoch\n" + "1\n" * rows)

    leave(0, finished=True)
    leave(1)
    leave(3, failed="round 4, client 2: the loss is not finite")
    leave(5)
    leave(6, settings=settings_of(args[6]) | {"lr": 7.0})
    with locks.exclusively(tmp_path / f".{names[5]}.lock"):
        words = lines[5].split("#")[0].split()
        code = f"from fedmerge.reporting import run_status; print(run_status.state_of({words}))"
        command = [sys.executable, "-c", code]
        other = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    states = [run_status.state_of(words) for words in run_status.lines_of(write(tmp_path / "list", lines))]
    assert states[0] == ("done", names[0])
    assert states[1] == ("stopped after round 3 of 5", names[1])
    assert states[2] == ("not started", names[2])
    assert states[3] == ("failed after round 3 of 5: round 4, client 2: the loss is not finite", names[3])
    assert states[4][0].endswith("--lr: '-1' is not a positive number")
    assert "running, after round 3 of 5" in other.stdout
    assert states[5][0] == "stopped after round 3 of 5"
    assert states[6][0].endswith("is of a run with another lr")
    assert run_status.ranges([1, 2, 3, 7, 9, 10]) == "1-3,7,9-10"


ODD = (
    "--a\u00a01\r\n\u00a0\n--b\x0c 2\t#\x0c--c\n \t \r\n--d\u2028--e  \x1c3\n#--f\n\x0b\n--g\r"
    "--h '# no comment' \"\" x# one\r"
    "'# ' \"$(touch evil)\" \\* \\# 'it'\"'\"'s' é\\ è"
)


def test_the_launcher_and_the_status_see_the_same_lines_and_words(launch, tmp_path):
    (tmp_path / "odd.txt").write_text(ODD, encoding="utf-8", newline="")
    lines = run_status.lines_of(tmp_path / "odd.txt")
    assert lines[-2:] == [["--h", "# no comment", "", "x"], ["# ", "$(touch evil)", "*", "#", "it's", "é è"]]
    odd = {"EXPERIMENTS": str(tmp_path / "odd.txt"), "EXTRA": "--metrics_dir 'a b' # not this"}
    assert int(launch("--count", **odd).stdout) == len(lines) == 8
    for number, words in enumerate(lines, 1):
        said = launch(str(number), **odd).stdout
        assert "<fedalg.py>" + "".join(f"<{word}>" for word in [*words, "--metrics_dir", "a b"]) + "\n" in said


@pytest.mark.parametrize("argument", [(), ("--submit",), ("1",), ("--status",), ("--count",)])
@pytest.mark.parametrize("where", ["line 3", "EXTRA"])
def test_an_open_quote_is_refused_before_anything_runs(launch, slurm_commands, tmp_path, argument, where):
    (tmp_path / "bad.txt").write_text("--a 1\n\n--b 'x\n" if where != "EXTRA" else "--a 1\n")
    bad = {"EXPERIMENTS": str(tmp_path / "bad.txt"), "EXTRA": '"--c' if where == "EXTRA" else ""}
    done = launch(*argument, **slurm_commands, **bad)
    place = f"{tmp_path}/bad.txt: line 3" if where != "EXTRA" else "EXTRA"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"run_status.py: error: {place}: no closing quotation")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("argument", ["--help", "-h"])
def test_help_is_help(launch, argument):
    done = launch(argument, EXPERIMENTS="nowhere")
    assert done.returncode == 0
    assert "./run_experiments.sh --status   a table" in done.stdout
    assert "EXTRA=" in done.stdout
    assert "SBATCH" not in done.stdout


@pytest.mark.parametrize("arguments", [["--stats"], ["1", "2"]])
def test_unknown_arguments_are_one_line(launch, arguments):
    done = launch(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert arguments[-1] in done.stderr


def test_paths_are_the_callers(launch, tmp_path):
    """The list, SETUP and PYTHON by names relative to the folder that the launcher is called from."""
    (tmp_path / "setup.sh").write_text("echo set up\n")
    mine = {"cwd": tmp_path, "PYTHON": "./python", "SETUP": "setup.sh"}
    for experiments_txt in ("experiments.txt", ""):  # the second time by default
        done = launch("1", **mine, EXPERIMENTS=experiments_txt)
        assert "set up" in done.stdout
        assert "<fedalg.py><--a><1>\n" in done.stdout
    (tmp_path / "experiments.txt").unlink()
    assert launch("--count", **mine, EXPERIMENTS="").stdout == "set up\n96\n"  # of the repository
    done = launch("--count", **mine)
    assert done.returncode == 2
    assert done.stderr == (f"run_status.py: error: {tmp_path}/experiments.txt: there is no such file\n")
    done = launch("--count", cwd=tmp_path, SETUP="nowhere.sh")
    assert (done.returncode, f"cannot read {tmp_path}/nowhere.sh" in done.stderr) == (2, True)


def test_a_job_finds_the_program_where_the_script_was_submitted_from(launch, slurm_commands, tmp_path):
    """SLURM runs a copy, in the folder of the caller, and knows where the script was."""
    copy, here = tmp_path / "slurm_script", tmp_path / "caller's folder"
    shutil.copy(ROOT / "run_experiments.sh", copy)
    here.mkdir()
    (here / "mine.txt").write_text("--n_epochs 1 --metrics_dir m")
    job = {**BATCH, "SLURM_SUBMIT_DIR": str(here), "SLURM_JOB_ID": "7", "SLURM_JOB_PARTITION": "main"}
    called = {"COMMAND": f"{ROOT}/run_experiments.sh", "EXPERIMENTS": "mine.txt", "cwd": "/", "script": copy}
    done = launch(**slurm_commands, **job, **called)
    assert f" {ROOT}/run_experiments.sh --task {ROOT} 0\n" in done.stderr, done
    assert (here / "logs").is_dir()
    array = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_JOB_ID": "7"}
    done = launch("--task", str(ROOT), "0", **job, **array, **called)  # where scontrol answers nobody
    assert "<fedalg.py><--n_epochs><1>" in done.stdout


def test_figures_are_of_the_folder_that_the_runs_go_to(launch, slurm_commands, tmp_path):
    def drawn(**environment):
        done = launch("--submit", **slurm_commands, EXPERIMENTS=str(tmp_path / "list"), cwd=tmp_path, **environment)
        return done.stdout.splitlines()[-1].partition("plotting.sh ")[2]

    (tmp_path / "list").write_text("--seed 1\n--seed 2\n")
    assert drawn() == "--csv_dir metrics"
    assert drawn(EXTRA="--out 'my runs'") == r"--out my\ runs"
    (tmp_path / "list").write_text("--seed 1 --metrics_dir a\n--seed 2\n--lr wrong\n")
    assert drawn() == "--csv_dir FOLDER, for each folder of metrics that the list names"
    assert drawn(EXTRA="--metrics_dir b") == "--csv_dir b"


# --------------------------------------------------------------------------------------------------------------------
# Side by side


def test_jobs_run_side_by_side_and_share_the_cores(launch, tmp_path):
    (tmp_path / "slow.txt").write_text("--a slow\n--b slow\n--c slow\n--d slow\n--e elsewhere\n--f fail")
    what = {"EXPERIMENTS": str(tmp_path / "slow.txt"), "BEGUN": str(tmp_path / "begun"), "AT_ONCE": "4"}
    done = launch(JOBS="4", **what)
    assert done.returncode == 1
    assert done.stderr == "run_experiments.sh: failed: 6\n"
    assert "go on in other processes: 5\n" in done.stdout
    threads = max(1, len(os.sched_getaffinity(0)) // 4)
    assert f"[1] threads {threads}\n" in done.stdout
    assert "[2] <fedalg.py><--b><slow>\n" in done.stdout
    done = launch(JOBS="2", OMP_NUM_THREADS="7", **what)
    assert "[4] threads 7\n" in done.stdout
    done = launch(JOBS="two")
    assert (done.returncode, "JOBS=two" in done.stderr) == (2, True)


def test_a_run_that_goes_on_elsewhere_is_no_failure(launch, tmp_path):
    (tmp_path / "list").write_text("--a elsewhere\n--b 2\n")
    done = launch(EXPERIMENTS=str(tmp_path / "list"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("go on in other processes: 1\n")
    job = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_JOB_ID": "7", "SLURM_JOB_ID": "8", **BATCH}
    assert launch(EXPERIMENTS=str(tmp_path / "list"), **job).returncode == 0
    assert launch("1", EXPERIMENTS=str(tmp_path / "list")).returncode == 73


def heed_all():
    """Undo what tests in the background of a shell inherit: a script cannot trap what is ignored as it starts."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("jobs", "name"), [("1", "SIGINT"), ("1", "SIGUSR1"), ("2", "SIGINT"), ("2", "SIGTERM"), ("2", "SIGHUP")]
)
def test_a_signal_reaches_all_that_run(tmp_path, jobs, name):
    """As typed at a terminal: it goes to the launcher's whole process group, yet each run hears it once."""
    python = tmp_path / "python"
    python.write_text(
        f"""#!/bin/sh
case "$2" in fedmerge.reporting.run_status) exec "{sys.executable}" "$@";; esac
exec "{sys.executable}" -c '
import signal, sys, time
def hear(number, frame):
    print("heard", flush=True)
    time.sleep(0.5)
    print("saved", flush=True)
    sys.exit(75)
for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
    signal.signal(getattr(signal, name), hear)
print("runs", flush=True)
for _ in range(1200):  # not at a stretch: a signal that comes just before that is heard after it
    time.sleep(0.05)'
"""
    )
    python.chmod(0o755)
    (tmp_path / "list").write_text("--a\n--b\n--c\n")
    env = {**os.environ, "PYTHON": str(python), "EXPERIMENTS": str(tmp_path / "list"), "JOBS": jobs}
    process = subprocess.Popen(
        [ROOT / "run_experiments.sh"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=heed_all,
    )
    said = ""
    while said.count("runs") < int(jobs):
        said += process.stdout.readline()
    os.killpg(process.pid, getattr(signal, name))
    more, _ = process.communicate(timeout=30)
    assert process.returncode == 75
    assert more.count("heard") == more.count("saved") == int(jobs)
    assert "runs" not in more
    assert f"stopped, go on when called again: {'1 2' if jobs == '2' else '1'}\n" in more


@pytest.mark.slow
def test_two_launchers_share_a_list(digits, tmp_path):
    (tmp_path / "digits.txt").write_text("".join((tmp_path / "digits.txt").read_text().splitlines(keepends=True)[:2]))
    env = {**os.environ, **digits, "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen([ROOT / "run_experiments.sh"], env=env, stderr=subprocess.PIPE) for _ in range(2)]
    assert [process.wait(timeout=200) for process in both] == [0, 0], [p.stderr.read() for p in both]
    assert len(list((tmp_path / "m").glob("*_metrics.csv"))) == 2


def write(path, lines):
    path.write_text("\n".join(["# a title", "", *lines]))
    return path


def lines_of(file):
    return [line for line in (re.sub("#.*", "", text).strip() for text in file.read_text().splitlines()) if line]


def test_the_grid_is_whole_and_parses():
    lines = lines_of(ROOT / "experiments.txt")
    runs = [parse_args(line.split()) for line in lines]
    assert len({run_name(args) for args in runs}) == 4 * 2 * 4 * 3
    assert {args.algorithm for args in runs} == {"fedavg", "fedprox", "fedacg", "las"}


def test_what_runs_or_is_finished_is_not_missing(tmp_path, capsys):
    """Of four lines the first is finished, the second runs, the third was stopped."""
    lines = [f"--algorithm fedavg --seed {seed} --metrics_dir {tmp_path}" for seed in range(4)]
    (tmp_path / "list").write_text("\n".join(lines) + "\n")
    names = []
    for line in lines[:3]:
        args = parse_args(line.split())
        names.append(run_name(args))
        settings = settings_of(args)
        saving.write_json(tmp_path / f"{names[-1]}.json", {"settings": settings, "finished": args.seed == 0})
    with locks.exclusively(tmp_path / f".{names[1]}.lock"):
        run_status.main([str(tmp_path / "list"), "--missing"])
    assert capsys.readouterr().out.strip() == "3-4"
    run_status.main([str(tmp_path / "list"), "--missing"])
    assert capsys.readouterr().out.strip() == "2-4"
