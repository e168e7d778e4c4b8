"""The command line: what it takes, what it refuses in a line, and what goes without saying."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT

from fedmerge.config.options import ALIASES, all_options
from fedmerge.config.parser import RECIPES, build_parser, parse_args, typed_settings
from fedmerge.config.resolve import resolve
from fedmerge.config.run_name import run_name
from fedmerge.config.settings_files import read_flags, split_words
from fedmerge.errors import InputError
from fedmerge.python_source import HERE
from fedmerge.registry import DATASETS, specs

BAD = {
    "--sparsity 0": "--sparsity/--keep: '0' is not a share in (0, 1]",
    "--sparsity 2": "--sparsity",
    "--participation 0": "--participation",
    "--participation 1.5": "--participation: '1.5' is not a share in (0, 1]",
    "--dirichlet 0": "--dirichlet: '0' is not a positive number, nan or iid",
    "--dirichlet -1": "--dirichlet",
    "--dirichlet inf": "--dirichlet",
    "--lr nan": "--lr: 'nan' is not a positive number",
    "--lr -0.1": "--lr",
    "--lr one": "--lr: 'one'",
    "--momentum 1": "--momentum",
    "--seed -1": "--seed",
    "--seed 1.5": "--seed",
    "--n_clients 0": "--n_clients",
    "--n_epochs 0": "--n_epochs",
    "--batch_size 2.5": "--batch_size",
    "--algorithm fedsgd": "--algorithm",
    "--dataset MNIST": "--dataset",
    "--learning_rate 0.1": "--learning_rate",
    "--round 5": "did you mean --rounds?",
    "--mu 5": "did you mean --prox_mu?",
    "--dataset cifar10": "did you mean CIFAR10?",
    "--algorithm FedAvg": "did you mean fedavg?",
    "--model_name resnet": "did you mean resnet",
    "--pretrained --model_name cnn --dataset DIGITS": "there are no published weights of the cnn here",
    "--batchsize 5": "did you mean --batch_size?",
    "--spars 0.1": "--spars",
    "extra": "extra",
    "--pretrained --init_weights x": "give one",
    "--pretrained": "--pretrained needs --model_name",
    "--model_name resnet18 --pretrained --norm group": "--norm batch",
    "--model_name resnet18 --norm none": "--norm none",
    "--augment standard": "not for DIGITS",
    "--init_weights nowhere.pt": "no such file",
    "--partition_file split.txt": ".json",
    "--metrics_dir /dev/null/x": "--metrics_dir: /dev/null is not a folder",
    "--results_file /": "is not a file that can be written",
    "--results_file /dev/null": "is not a file that can be written",
    "--metrics_dir=": "--metrics_dir: the path is empty",
    "--lr 1e300": "--lr",
    "--weight_decay 1e-300": "--weight_decay",
    "--n_client_epochs 99999999999999": "--n_client_epochs",
    "--norm batch --batch_size 1": "too small for BatchNorm",
    "--config nowhere.txt": "/nowhere.txt: there is no such file",
    "--out=": "--out: the path is empty",
    "--algorithm fedavg --sparsity 0.1": "--sparsity has no effect without --compressor topk",
    "--merge median --weighting uniform": "--weighting has no effect with --merge median, in which all clients count",
    "--merge trimmed_mean --weighting uniform": "--weighting has no effect with --merge trimmed_mean",
    "--algorithm swa --norm group --bn_recalibrate": "--bn_recalibrate has no effect with --norm group, which has no",
    "--algorithm swa --norm none --bn_recalibrate": "--bn_recalibrate has no effect with --norm none",
    "--norm group --bn_every 2": "--bn_every has no effect with --norm group, which has no statistics to send",
    "--norm group --bn eval_after_first_epoch": "--bn has no effect with --norm group, which has no statistics",
    "--norm batch --algorithm moon --bn_every 2 --eval_every 2": "--local moon needs --bn_every 1, not 2",
    "--norm batch --bn frozen --bn_every 2": "--bn_every has no effect with --bn frozen: no statistics are sent",
    "--norm batch --bn_every 2": "--eval_every 1 is no multiple of --bn_every 2: models would be judged by statistics",
    "--norm batch --eval_every 3 --bn_every 2": "--eval_every 3 is no multiple of --bn_every 2",
    "--algorithm centralised --bn_every 2": "--bn_every has no effect with --algorithm centralised, where all data",
    "--algorithm diwa --holdout 0.2": "--holdout has no effect with --soup_selection uniform",
    "--merge stitch --stitch prior": "--stitch has no effect without a --compressor: all clients send all weights",
    "--attack noise --attackers 0.02": "--attackers 0.02 of 20 clients is no client: nobody would lie",
    "--algorithm centralised --weighting uniform": "--weighting has no effect with --algorithm centralised, where",
    "--algorithm centralised --no-shared_init": "--no-shared_init has no effect with --algorithm centralised, where",
    "--algorithm centralised --compressor topk": "--compressor has no effect with --algorithm centralised, where",
    "--algorithm centralised --dropout 0.5": "--dropout has no effect with --algorithm centralised, where",
    "--algorithm centralised --merge median": "--merge has no effect with --algorithm centralised, where",
    "--algorithm centralised --attack noise": "--attack has no effect with --algorithm centralised, where",
    "--algorithm las --prox_momentum 0.5": "--prox_momentum has no effect without --algorithm fedprox",
    "--algorithm las --graft_epochs 3": "no effect without --localiser learned",
    "--algorithm las --warmup_sparsity 0.5": "no effect without --warmup_rounds",
    "--down_sparsity 0.5": "no effect without --downlink sparse",
    "--value_bits 3": "'3' is not 32, 16, 8, 4, 2 or 1",
}


@pytest.mark.parametrize("flags", BAD)
def test_a_bad_command_line_is_one_line_and_status_2(flags, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        parse_args(flags.split())
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert error.count("\n") == 1
    assert BAD[flags] in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", ["--norm group", "--norm batch --bn frozen", "--norm batch --algorithm centralised"])
def test_what_a_shared_file_of_flags_says_of_statistics_is_nothing_where_there_are_none(flags, tmp_path):
    (tmp_path / "bn.cfg").write_text("--bn_every 5\n")
    few = [*flags.split(), "--eval_every", "5"]
    args, plain = parse_args(["--config", str(tmp_path / "bn.cfg"), *few]), parse_args(few)
    assert args.bn_every == 1
    assert run_name(args) == run_name(plain)


def test_help_and_refusals_do_not_import_torch():
    """What makes them quick: neither torch nor numpy is imported on the way."""
    code = (
        "import sys, runpy\n"
        "sys.argv = ['fedalg.py', *sys.argv[1:]]\n"
        "try: runpy.run_path('fedalg.py', run_name='__main__')\n"
        "except SystemExit as end: print('status', end.code, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    for flags, status in ((["--help"], 0), (["--lr", "nan"], 2)):
        done = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True)
        assert f"status {status} False False" in done.stdout, done.stderr


def test_help_names_every_option_and_algorithm(capsys):
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    text = capsys.readouterr().out
    for name in [*all_options(), *specs("algorithm")]:
        assert name in text


def test_the_words_of_the_field_are_the_same_flags():
    words = "--algorithm las --rounds 7 --keep 0.1"
    args = parse_args(words.split())
    assert (args.n_epochs, args.sparsity) == (7, 0.1)
    assert args == parse_args(["--algorithm", "las", "--n_epochs", "7", "--sparsity", "0.1"])
    assert parse_args(["--algorithm", "fedprox", "--prox_mu", "0.5"]).prox_momentum == 0.5
    for name in ALIASES.values():
        assert name in all_options()


def test_only_what_is_said_to_be_augmented_is_augmented_by_default(tmp_path):
    """Flips make another image of a digit, a letter, a left shoe; whoever adds a dataset gets none unless asked for."""
    (tmp_path / "letters").mkdir()
    args = [resolve({"dataset": name, "data_root": str(tmp_path)}) for name in [*DATASETS, "letters"]]
    assert {a.dataset for a in args if a.augment == "standard"} == {"CIFAR10", "CIFAR10T", "CIFAR100", "TinyImageNet"}
    assert resolve({"dataset": "FashionMNIST", "augment": "standard"}).augment == "standard"


def test_the_published_command_line_and_its_defaults():
    flags = "--algorithm fedavg --dataset CIFAR10 --dirichlet 0.1 --n_epochs 100 --seed 42"
    args = parse_args(flags.split())
    published = {
        "data_root": "./data",
        "model_name": "resnet18",
        "n_clients": 20,
        "participation": 0.2,
        "n_client_epochs": 5,
        "batch_size": 64,
        "lr": 0.01,
        "momentum": 0.9,
        "sparsity": 0.2,
        "prox_momentum": 0.01,
        "acg_momentum": 0.1,
        "acg_beta": 0.0,
    }
    assert {name: getattr(args, name) for name in published} == published
    assert run_name(args) == "fedavg_CIFAR10_0.1_42"
    assert parse_args(["--dirichlet", "nan"]).dirichlet == parse_args([]).dirichlet == "iid"
    assert parse_args([]).model_name == "cnn"


def test_a_config_file_holds_flags_and_the_command_line_wins(tmp_path, capsys):
    file = tmp_path / "flags.txt"
    file.write_text("# shared by several algorithms\n--lr 0.5\n\n--n_epochs 7  # few\n--sparsity 0.3\n--quiet\n")
    args = parse_args(["--config", str(file), "--lr", "0.25", "--no-quiet"])
    assert (args.lr, args.n_epochs, args.quiet) == (0.25, 7, False)
    assert args.sparsity == 0.2  # fedavg has none, so that its name does not tell of it
    assert parse_args(["--algorithm", "las", "--config", str(file)]).sparsity == 0.3
    for text in ("--lr nan\n", "--nonsense 3\n", '--data_root "open\n', "--config x\n", "lr 0.1\n"):
        file.write_text(text)
        with pytest.raises(SystemExit) as caught:
            parse_args(["--config", str(file)])
        assert caught.value.code == 2
        assert "flags.txt" in capsys.readouterr().err


def test_out_sets_the_outputs_that_are_not_given(tmp_path):
    args = parse_args(["--out", "there", "--plots_dir", "p"])
    found = args.metrics_dir, args.plots_dir, args.checkpoint_dir, args.results_file
    assert found == ("there/metrics", "p", "there/checkpoints", "there/results.csv")
    file = tmp_path / "flags.txt"
    file.write_text("--metrics_dir m --out theirs  # a folder by its own flag, and all others\n")
    args = parse_args(["--config", str(file)])
    assert (args.metrics_dir, args.results_file) == ("m", "theirs/results.csv")
    args = parse_args(["--config", str(file), "--out", "mine"])  # the command line wins
    assert (args.metrics_dir, args.results_file) == ("mine/metrics", "mine/results.csv")
    assert run_name(args) == run_name(parse_args([]))
    assert resolve({"out": "o"}).metrics_dir == "o/metrics"


def test_a_dataset_may_be_a_folder(tmp_path):
    (tmp_path / "pets").mkdir()
    assert resolve({"dataset": "pets", "data_root": str(tmp_path)}).dataset == "pets"
    for name in ("cats", "../pets", "pets/../pets", "..", ""):
        with pytest.raises(InputError, match=r"is none of CIFAR10, .* nor a folder"):
            resolve({"dataset": name, "data_root": str(tmp_path)})


@pytest.mark.parametrize(
    "flags",
    [
        "--merge median --weighting samples",
        "--merge krum --weighting uniform",
        "--algorithm las --stitch prior",
        "--algorithm soups --holdout 0.2",
        "--algorithm swad --holdout 0.2",
        "--algorithm swa --norm batch --bn_recalibrate",
        "--attack noise --attackers 0.025",  # half a client is one
        "--algorithm centralised --shared_init --dropout 0",
    ],
)
def test_a_flag_that_has_an_effect_or_is_at_its_default_is_taken(flags):
    parse_args(["--device", "cpu", *flags.split()])


def test_a_file_of_flags_may_be_shared_with_an_algorithm_in_which_some_have_no_effect(tmp_path):
    (tmp_path / "flags.txt").write_text("--weighting uniform --dropout 0.3\n")
    parse_args(["--config", str(tmp_path / "flags.txt"), "--algorithm", "centralised"])


@pytest.mark.slow
def test_what_was_published_is_taken():
    """Lines of results/ and of the dissertation, but for files that are not here."""
    lists = [ROOT / "experiments.txt", *sorted(ROOT.glob("results/*/experiments.txt"))]
    lines = {line for path in lists for line in path.read_text().splitlines() if line.partition("#")[0].strip()}
    of_here = {re.sub(r"--(dataset|init_weights|save_weights) \S+", "", line) for line in lines}
    without_seed = {re.sub(r"--seed \d+|--pretrained", "", line).strip() for line in of_here}
    for line in sorted(without_seed):
        parse_args(split_words(f"{line} --dataset DIGITS", "line"))


# --------------------------------------------------------------------------------------------------------------------
# Recipes


def refused_words(capsys, *words):
    with pytest.raises(SystemExit):
        parse_args([*words])
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_its_flags(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [word for _, words in read_flags(HERE / "recipes" / f"{name}.txt") for word in words]
    whose = {"fedacg": "fedacg", "niid_bench": "fedprox"}[name]  # algorithm, some of whose flags it sets
    file = HERE / "recipes" / f"{name}.txt"
    mine, typed = (
        parse_args([*given, "--algorithm", whose]) for given in (["--recipe", name], ["--config", str(file)])
    )
    assert vars(mine) == vars(typed)
    assert vars(build_parser().parse_args(words)).items() <= vars(mine).items()
    assert typed_settings({"recipe": name, "algorithm": whose}) == mine
    assert not hasattr(mine, "recipe")


def test_what_is_typed_or_in_a_file_wins_over_a_recipe(tmp_path):
    (tmp_path / "mine.txt").write_text("--recipe fedacg\n--lr 0.5\n--dirichlet 0.1\n")
    args = parse_args(["--config", str(tmp_path / "mine.txt"), "--batch_size", "7"])
    assert (args.lr, args.dirichlet, args.partition, args.batch_size, args.n_clients) == (0.5, 0.1, None, 7, 100)
    args = parse_args(["--recipe", "fedacg", "--algorithm", "fedacg", "--partition", "labels:2"])
    assert (args.partition, args.acg_beta, args.momentum) == ("labels:2", 2e-3, 0.0)
    args = parse_args(["--recipe", "fedacg", "--dirichlet", "iid"])
    assert (args.partition, args.dirichlet) == (None, "iid")


def test_a_recipe_that_is_none_is_refused(capsys):
    assert "did you mean fedacg?" in refused_words(capsys, "--recipe", "fedagc")
    with pytest.raises(InputError, match=r"recipe: 'fedagc' is none of fedacg, niid_bench \(did you mean fedacg"):
        typed_settings({"recipe": "fedagc"})


def test_a_preset_for_pretrained_networks_also_takes_a_start_of_ones_own(tmp_path):
    given = {"algorithm": "las", "preset": "pretrained", "dataset": "CIFAR10", "model_name": "mobilenet_v3_small"}
    compact = resolve(given | {"preset": "compact", "pretrained": True})
    published = resolve(given)
    differ = {name for name, value in vars(compact).items() if getattr(published, name) != value}
    assert differ == {"preset", "head_init", "head_bits", "bn", "lr", "lr_decay"}
    (tmp_path / "start.pt").write_bytes(b"")
    own = resolve(given | {"init_weights": str(tmp_path / "start.pt")})
    assert (own.pretrained, own.bn, own.lr) == (False, "frozen", 0.002)
    with pytest.raises(InputError, match="both set the starting weights"):
        resolve(given | {"pretrained": True, "init_weights": str(tmp_path / "start.pt")})
    with pytest.raises(InputError, match="no published weights of the mlp"):
        resolve(given | {"model_name": "mlp"})
