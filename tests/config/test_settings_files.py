"""Settings from TOML and from the record of a run, and TOML that makes a run again."""

import json

import pytest

from fedmerge.config.parser import parse_args, typed_settings
from fedmerge.config.resolve import resolve
from fedmerge.config.run_name import acting, run_name, settings_of
from fedmerge.config.settings_files import words_in, write_toml
from fedmerge.errors import InputError
from fedmerge.registry import specs

PRESETS = [
    (name, preset) for name, spec in sorted(specs("algorithm").items()) for preset in (None, *sorted(spec.presets))
]


def settings_for(algorithm, preset=None, **more):
    alone = {"n_clients": 1, "participation": 1.0} if algorithm == "centralised" else {}
    start = {"model_name": "mobilenet_v3_small"} if preset == "pretrained" else {}
    return resolve({"algorithm": algorithm, "preset": preset, "seed": 7, "batch_size": 8, **alone, **start, **more})


@pytest.mark.parametrize(("algorithm", "preset"), PRESETS)
def test_what_is_written_makes_the_same_settings(tmp_path, algorithm, preset):
    args = settings_for(algorithm, preset)
    write_toml(tmp_path / "c.toml", run_name(args), acting(settings_of(args)))
    again = parse_args(["--config", str(tmp_path / "c.toml")])
    assert vars(again) == vars(args)


@pytest.mark.parametrize(("algorithm", "preset"), PRESETS)
def test_a_record_makes_its_run_again_but_for_where_it_was(tmp_path, algorithm, preset):
    args = settings_for(algorithm, preset, metrics_dir="elsewhere", device="cpu", save_weights="w.pt")
    (tmp_path / "run.json").write_text(json.dumps({"settings": settings_of(args)}))
    again = parse_args(["--like", str(tmp_path / "run.json"), "--seed", "3"])
    assert run_name(again) == run_name(settings_for(algorithm, preset, seed=3))
    assert (again.metrics_dir, again.device, again.save_weights) == ("metrics", "auto", None)


@pytest.mark.parametrize("split", [{"partition": "labels:3"}, {"dirichlet": 0.25}, {"dirichlet": "iid"}], ids=str)
def test_splits_are_kept(tmp_path, split):
    args = settings_for("fedavg", **split)
    (tmp_path / "run.json").write_text(json.dumps({"settings": settings_of(args)}))
    write_toml(tmp_path / "c.toml", "", acting(settings_of(args)))
    for name in ("run.json", "c.toml"):
        again = parse_args(["--config", str(tmp_path / name)])
        assert (again.partition, again.dirichlet) == (args.partition, args.dirichlet)


def test_sections_are_for_readers_and_second_names_are_taken(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('keep = 0.1\n[anything]\nalgorithm = "las"\npretrained = false\nrounds = 3\n')
    args = parse_args(["--config", str(path), "--rounds", "4"])
    assert (args.algorithm, args.sparsity, args.pretrained, args.n_epochs) == ("las", 0.1, False, 4)
    assert typed_settings({"config": str(path)}).n_epochs == 3


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.toml", "lr = ", "is no TOML"),
        ("a.toml", "lr = [1]", "lr is no number, text, true or false"),
        ("a.toml", "lr = 1\n[x]\nlr = 1", "lr is there twice"),
        ("a.toml", "lr = true", "lr takes a value, not true"),
        ("a.toml", "[a.b]\nlr = 1", "b is no number"),
        ("a.json", "{}", "is no record of a run: it has no settings"),
        ("a.json", "[]", "it is no JSON object"),
        ("a.json", "{", "JSON"),
        ("gone.toml", None, "there is no such file"),
        ("gone.json", None, "there is no such file"),
    ],
    ids=str,
)
def test_what_is_no_settings_is_one_line(tmp_path, name, text, why):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=why) as said:
        words_in(path)
    assert str(path) in str(said.value)
    assert "\n" not in str(said.value)


def test_what_is_misspelt_there_is_told_with_what_was_meant(tmp_path, capsys):
    (tmp_path / "c.toml").write_text("sparsty = 0.1\n")
    with pytest.raises(SystemExit):
        parse_args(["--config", str(tmp_path / "c.toml"), "--algorithm", "las"])
    assert "--sparsity?" in capsys.readouterr().err


def test_another_file_is_not_written_over(tmp_path):
    path = tmp_path / "c.toml"
    write_toml(path, "run", {"lr": 0.1})
    write_toml(path, "run", {"lr": 0.1})
    with pytest.raises(InputError, match="is there already"):
        write_toml(path, "run", {"lr": 0.2})
