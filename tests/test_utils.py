"""The command line, run names, keyed seeds, and files that survive."""

import subprocess
import sys

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from fedmerge.config.options import ALIASES, algorithm_options, all_options
from fedmerge.config.parser import parse_args
from fedmerge.config.resolve import resolve
from fedmerge.config.run_name import run_name
from fedmerge.errors import InputError
from fedmerge.randomness import key_seed
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
    "--algorithm fedavg --sparsity 0.1": "no effect with --algorithm fedavg (only: las, stc, topk)",
    "--algorithm las --prox_momentum 0.5": "no effect with --algorithm las (only: fedprox)",
    "--algorithm las --graft_epochs 3": "no effect without --localiser learned",
    "--algorithm las --warmup_sparsity 0.5": "no effect without --warmup_rounds",
    "--down_sparsity 0.5": "no effect without --downlink sparse",
    "--value_bits 2": "'2' is not 32, 16, 8, 4 or 1",
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


# --------------------------------------------------------------------------------------------------------------------
# Names


def test_a_name_tells_every_setting_that_changes_the_result(tmp_path):
    hand_made = tmp_path / "a.json"
    hand_made.write_text('{"clients": [[0], [1]], "labels_sha256": "x"}')
    plain = run_name(resolve({"algorithm": "las"}))
    assert plain == "las_DIGITS_iid_0"
    named = [o for o in all_options().values() if o.named and o.name not in ("init_weights", "pretrained")]
    other = {
        "dataset": "CIFAR10T",
        "model_name": "resnet18",
        "norm": "group",
        "dirichlet": 0.5,
        "clip_norm": 1.0,
        "local_steps": 3,
        "value_bits": 8,
        "down_bits": 8,
        "preset": "compact",
        "partition_file": str(hand_made),
        "augment": "standard",
        "local": "swa",
        "lr": 0.5,
        "image_size": 16,
    }
    owners = {name: found[1][0] for name, found in algorithm_options().items()}
    seen = {}
    for option in named:
        if option.name == "algorithm":
            continue
        given = {"algorithm": owners.get(option.name, "las")}
        if option.needs:
            given |= dict([option.needs.split("|")[0].split("=")] if "=" in option.needs else {option.needs: 3})
        base = dict(given)
        value = other.get(option.name)
        if value is None:
            value = not option.default if option.kind == "flag" else None
        if value is None:
            value = option.kind[-1] if isinstance(option.kind, tuple) else option.default * 0.5 or 0.5
        if option.kind in ("count", "integer") and option.default is not None:
            value = option.default + 1
        if option.name == "augment":
            given["dataset"], value = "CIFAR10", "none"
        given[option.name] = value
        name = run_name(resolve(given))
        assert name not in seen, (option.name, seen.get(name))
        assert name != run_name(resolve(base))
        seen[name] = option.name


settings_pairs = st.fixed_dictionaries(
    {
        "algorithm": st.sampled_from(["fedavg", "las"]),
        "lr": st.sampled_from([0.01, 0.1, 0.010000000000000002, 1e-5]),
        "seed": st.integers(0, 3),
        "n_epochs": st.integers(1, 200),
        "dirichlet": st.sampled_from(["iid", 0.1, 1.0, 10.0]),
        "weight_decay": st.floats(0, 1),
    }
)


@given(a=settings_pairs, b=settings_pairs)
def test_two_names_are_equal_exactly_if_the_settings_are(a, b):
    assert (run_name(resolve(a)) == run_name(resolve(b))) == (a == b)


def test_folders_device_and_quiet_do_not_change_the_name():
    settings = {"metrics_dir": "m", "plots_dir": "p", "device": "cpu", "quiet": True, "data_root": "elsewhere"}
    assert run_name(resolve(settings)) == run_name(resolve({}))


def test_starting_weights_are_named_by_content(tmp_path):
    file = tmp_path / "w.pt"
    names = []
    for content in (b"a", b"b", b"a"):
        file.write_bytes(content)
        names.append(run_name(resolve({"init_weights": str(file)})))
    assert names[0] == names[2] != names[1]


def test_a_very_long_name_still_fits_a_file_system():
    args = resolve({"algorithm": "las", "localiser": "learned", "lr": 0.123456789012345, "clip_norm": 1 / 3,
                          "weight_decay": 1 / 7, "lr_decay": 1 / 9, "sparsity": 1 / 11, "graft_lr": 1 / 13,
                          "sigmoid_bias": 1 / 17, "l1_strength": 1 / 19, "momentum": 1 / 23})  # fmt: skip
    other = resolve({**vars(args), "momentum": 1 / 29})
    assert len(run_name(args)) < 200
    assert run_name(args) != run_name(other)


# --------------------------------------------------------------------------------------------------------------------
# Seeds


def test_keys_give_independent_seeds_that_never_change():
    keys = [(seed, what, i) for seed in (0, 1) for what in ("batches", "clients") for i in range(50)]
    assert len({key_seed(*key) for key in keys}) == len(keys)
    assert key_seed(0, "clients", 1) == 2815739281608643980  # a change here changes every published result


def test_a_dataset_may_be_a_folder(tmp_path):
    (tmp_path / "pets").mkdir()
    assert resolve({"dataset": "pets", "data_root": str(tmp_path)}).dataset == "pets"
    for name in ("cats", "../pets", "pets/../pets", "..", ""):
        with pytest.raises(InputError, match=r"is none of CIFAR10, .* nor a folder"):
            resolve({"dataset": name, "data_root": str(tmp_path)})
