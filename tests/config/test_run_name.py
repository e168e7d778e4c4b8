"""Names of runs: different settings have different ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmerge import registry
from fedmerge.config.options import all_options
from fedmerge.config.resolve import resolve
from fedmerge.config.run_name import run_name
from fedmerge.reporting import run_tables


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
        "compressor": "randk",
        "merge": "median",
        "partition": "labels:2",
        "lr": 0.5,
        "image_size": 16,
        "lora_layers": "a",
        "patch_size": 4,
        "drop_rate": 0.5,
        "drop_path_rate": 0.5,
    }
    seen = {}
    for option in named:
        if option.name == "algorithm":
            continue
        given = {"algorithm": "las"} | ({option.axis: option.owners[0]} if option.axis else {})
        if option.needs:
            given |= dict([option.needs.split("|")[0].split("=")] if "=" in option.needs else {option.needs: 3})
        if option.name == "weight_standardisation":
            given["norm"] = "group"
        base = dict(given)
        value = other.get(option.name)
        if value is None:
            value = not option.default if option.kind == "flag" else None
        if value is None and isinstance(option.kind, tuple):
            usual = getattr(resolve(base), option.name)
            value = next(choice for choice in reversed(option.kind) if choice != usual)
        elif value is None:
            value = option.default * 0.5 or 0.5
        if option.kind in ("count", "integer") and option.default is not None:
            value = option.default + 1
        if option.name == "lora_merge":
            given["merge"] = base["merge"] = "mean"
        if option.name in ("bn", "bn_every"):
            given |= {"norm": "batch", "eval_every": 2}
            base |= {"norm": "batch", "eval_every": 2}
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


PLUGIN = '''
from fedmerge.merging.mean import mean
from fedmerge.registry import merging_rule, partition


@merging_rule("mine", options={"file": ("a", "path", "a file"), "way": ("a/b", ("a/b", "../c"), "a way")})
def mine(aggregate, layout, file, way):
    """mine"""


@partition("from_file", value="path", title="{value}")
def from_file(classes, n_clients, value, rng):
    """as a file says"""
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(PLUGIN)
    registry.use_plugins([tmp_path / "mine.py"])


def test_no_value_leads_a_name_out_of_its_folder_and_no_two_give_one(plugin):
    paths = ["../../x", "..-..-x", "/etc/x", "x", "..", "a\\b", "a b", "é" * 90, "\U0001f600" * 60, "line\n", "\udcff"]
    given = [{"merge": "mine", "file": path} for path in paths] + [{"merge": "mine", "way": "../c"}]
    given += [{"partition": f"from_file:{path}"} for path in paths] + [{"partition": "from_file:1e+20"}]
    given += [{"partition": f"quantity:{value}"} for value in ("1e20", "1e-20")]
    names = [run_name(resolve(settings)) for settings in given]
    assert len(set(names)) == len(names)
    assert all(map(run_tables.is_name, names))


def test_ordinary_values_are_told_as_they_are(plugin):
    assert run_name(resolve({"merge": "mine", "file": "my file.txt"})).endswith("_file=my file.txt")
    assert run_name(resolve({"partition": "quantity:1e-20"})) == "fedavg_DIGITS_quantity-1e-20_0"
    assert run_name(resolve({"partition": "labels:2", "lr": 1e20})) == "fedavg_DIGITS_labels-2_0_lr=1e+20"
