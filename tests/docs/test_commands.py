"""Every command and flag that the documentation names is one of the programs', and is not refused."""

import os
import re
import shlex
from pathlib import Path

import pytest
from pages import OTHERS, PAGES, ROOT, commands, examples, name_of, prose

import data
import plotting
import report
import tune
from fedmerge.config.options import ALIASES, all_options
from fedmerge.config.parser import build_parser, parse_args
from fedmerge.tuning.study import Study


def grid_of_runs(words):
    """Check a command line of tune.py, and all runs that it stands for."""
    behind = words.index("--") if "--" in words else len(words)
    args = tune.build_parser().parse_args(words[:behind])
    Study(tune.templates_of(args, words[behind + 1 :]), args.seeds, args.out)


PARSERS = {
    "fedalg.py": parse_args,
    "plotting.py": lambda words: plotting.build_parser().parse_args(words),
    "report.py": lambda words: report.build_parser().parse_args(words),
    "data.py": lambda words: data.build_parser().parse_args(words),
    "tune.py": grid_of_runs,
}
SCRIPTS = ["models.py", "import_TIN.py", "run_experiments.sh", "plotting.sh"]
SBATCH = {"signal", "gres", "time", "nodes", "cpus-per-task", "dependency"}  # flags of SLURM's own
FOREIGN = SBATCH | {"logdir"}  # of programs that are not here
PLACEHOLDER = re.compile(r"(\w+:)?[A-Z,]+|<.*>|\.\.\.|\".*=.*\"")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the examples as plugins, a folder of images, and weights under the names that commands have."""
    folder = tmp_path_factory.mktemp("workplace")
    plugins = [folder / Path(path).name for path in examples() if not path.startswith("tests/")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("FEDMERGE_PLUGINS", os.pathsep.join(map(str, plugins)))
        for path, code in examples().items():
            Path(Path(path).name).write_text(code)
        for page in PAGES:
            for weights in re.findall(r"--save_weights (\S+\.pt)", page.read_text()):
                Path(weights).touch()  # as if the command that writes it had run
            for name, lines in re.findall(r"```text\n# (\S+\.txt)\n(.*?)```", page.read_text(), re.DOTALL):
                Path(name).write_text(lines)
        yield


def calls(line):
    """Return [(script, words after it)] of a command line."""
    line = re.sub(r'^make run ARGS="(.*)"', r"python fedalg.py \1", line).replace("$seed", "0")
    words = shlex.split(line)
    scripts = [i for i, word in enumerate(words) if re.fullmatch(r"(\./)?(benchmarks/)?\w+\.(py|sh)", word)]
    return [(words[i].removeprefix("./"), words[i + 1 :]) for i in scripts[:1]]


COMMANDS = sorted({line for page in PAGES + OTHERS for line in commands(page)})


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in COMMANDS if calls(line)])
def test_a_command_is_not_refused(line, workplace, capsys):
    ((script, words),) = calls(line)
    if script in PARSERS:
        try:
            PARSERS[script](words)
        except SystemExit:
            pytest.fail(f"{line}: {capsys.readouterr().err}")
    else:
        source = (ROOT / script).read_text()
        assert all(word in source for word in words if word.startswith("--"))


def test_there_are_commands_of_every_script_and_every_target_of_make_is_one():
    assert {script for line in COMMANDS for script, _ in calls(line)} >= {*PARSERS, "models.py", "run_experiments.sh"}
    makefile, targets = (ROOT / "Makefile").read_text(), set()
    for page in PAGES + OTHERS:
        code = "\n".join([*commands(page), *re.findall(r"`(make [^`]+)`", prose(page))])
        targets |= set(re.findall(r"^make ([a-z-]+)", code, re.MULTILINE))
    assert targets >= {"run", "test", "docs"}
    assert [target for target in sorted(targets) if f"\n{target}:" not in makefile] == []


def spans():
    """Return {(page, text)} of what stands in backticks and has flags."""
    found = {(page, text) for page in PAGES + OTHERS for text in re.findall(r"`([^`]+)`", prose(page))}
    return sorted((name_of(page), text) for page, text in found if re.search(r"(^|\s)--\w", text))


def parts(text):
    """Yield the flags in a text, each with its values: lists of words."""
    for part in re.split(r"(?:^|\s)(?=--\w)", text)[1:]:
        yield part.split()


@pytest.fixture(scope="module")
def parser(workplace):
    return build_parser()


@pytest.fixture(scope="module")
def others():
    """The text of the other programs, in which their flags are."""
    files = [
        *(ROOT / script for script in ("plotting.py", "report.py", "data.py", "tune.py", *SCRIPTS)),
        *(ROOT / "benchmarks").glob("*.py"),
    ]
    return "".join(file.read_text() for file in files)


@pytest.mark.parametrize(("page", "text"), spans())
def test_a_flag_in_the_text_is_one_and_takes_what_is_said(page, text, parser, others, capsys):
    for flag, *values in parts(text):
        name = flag.removeprefix("--").partition("=")[0]
        known = {*all_options(), *ALIASES, "config", "recipe", "help"}
        if name.removeprefix("no-") not in known:
            assert name in FOREIGN or f'"--{name}"' in others or f" --{name}" in others, f"there is no {flag}"
        elif values and not PLACEHOLDER.fullmatch(" ".join(values)):
            try:
                parser.parse_args([flag, values[0].strip("\"'")])
            except SystemExit as ended:
                if not ended.code:  # --help of a topic
                    continue
                pytest.fail(f"{page}: {text}: {capsys.readouterr().err}")
