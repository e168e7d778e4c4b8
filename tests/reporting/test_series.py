"""Series told apart and named, chosen, and compared only with what they can be compared with."""

import json
import shutil

import pytest
from made_runs import change, loaded, write_run

from fedmerge.errors import InputError
from fedmerge.reporting import comparable
from fedmerge.reporting import series as grouping


def labels_of(folder):
    return [series.label for series in grouping.group_series(loaded(folder))]


def test_labels_say_what_is_not_usual_for_the_algorithm(tmp_path):
    compact = {"algorithm": "las", "preset": "compact"}
    for settings in ({}, {"value_bits": 8}, {"algorithm": "stc"}, {"algorithm": "topk", "sparsity": 0.05}, compact):
        write_run(tmp_path, [0.5], shared_init=True, **settings)
    write_run(tmp_path, [0.5], shared_init=True, sparsity=0.02, **compact)
    old = write_run(tmp_path, [0.5], seed=5, shared_init=True)
    record = json.loads((tmp_path / f"{old}.json").read_text())
    del record["settings"]["value_bits"]  # as before there was such a setting
    record["settings"]["gone"] = 3
    (tmp_path / f"{old}.json").write_text(json.dumps(record))
    mine = write_run(tmp_path, [0.5], seed=6, shared_init=True)
    change(tmp_path, mine, settings={"algorithm": "mine", "strength": 2})
    assert labels_of(tmp_path) == [
        "FedAvg gone=3 value_bits=32",
        "FedAvg value_bits=8",
        "FedAvg value_bits=32",
        "LaS-FL preset=compact sparsity=0.02",
        "LaS-FL preset=compact sparsity=0.04",
        "top-k sparsity=0.05",
        "STC",
        "mine",
    ]


def test_a_sweep_tells_the_default_too(tmp_path):
    for lr in (0.01, 0.05):
        write_run(tmp_path, [0.5], lr=lr)
    write_run(tmp_path, [0.5], algorithm="fedprox")
    assert labels_of(tmp_path) == ["FedAvg lr=0.01", "FedAvg lr=0.05", "FedProx"]


def test_where_many_settings_change_one_at_a_time_only_what_changed_is_told(tmp_path):
    for changed in ({}, {"lr": 0.1}, {"momentum": 0.5}, {"batch_size": 8}, {"lr_decay": 0.9}):
        write_run(tmp_path, [0.5], **changed)
    assert set(labels_of(tmp_path)) == {
        "FedAvg", "FedAvg lr=0.1", "FedAvg momentum=0.5", "FedAvg batch_size=8", "FedAvg lr_decay=0.9",
    }  # fmt: skip


def test_another_network_is_another_series(tmp_path):
    write_run(tmp_path, [0.5])
    write_run(tmp_path, [0.6], model_name="resnet18")
    assert labels_of(tmp_path) == ["FedAvg model_name=cnn", "FedAvg model_name=resnet18"]


def test_files_of_several_seeds_of_one_split_are_one_series(tmp_path):
    for seed in (0, 1):
        name = write_run(tmp_path, [0.5], seed=seed)
        split = {"dirichlet": None, "partition_file": f"patho_{seed}.json"}
        change(tmp_path, name, settings=split, partition={"name": "patho"})
    (series,) = grouping.group_series(loaded(tmp_path))
    assert (series.label, series.count, series.level.name) == ("FedAvg", "2", "patho")


def test_what_did_not_finish_is_counted_and_drawn_on_request(tmp_path):
    write_run(tmp_path, [0.5, 0.6], seed=0)
    change(tmp_path, write_run(tmp_path, [0.5, 0.1], seed=1), finished=False, failed="the loss is not finite")
    change(tmp_path, write_run(tmp_path, [0.5, 0.1], seed=2), finished=False)
    change(tmp_path, write_run(tmp_path, [0.1, 0.1], lr=9.0), finished=False, failed="the loss is not finite")
    one, none = grouping.group_series(loaded(tmp_path))
    assert one.legend == "FedAvg lr=0.01 (n=1 of 3, 1 diverged, 1 stopped)"
    assert none.legend == "FedAvg lr=9.0 (n=0 of 1, 1 diverged)"
    assert len(comparable.left_out([one, none])) == 3
    drawn = grouping.group_series(loaded(tmp_path), unfinished=True)
    assert [series.legend for series in drawn] == [
        "FedAvg lr=0.01 (n=1)",
        "FedAvg lr=0.01, unfinished (n=2, 1 diverged, 1 stopped)",
        "FedAvg lr=9.0, unfinished (n=1, 1 diverged)",
    ]
    assert not comparable.left_out(drawn)


def test_which_series_and_what_they_are_called(tmp_path):
    for settings in ({"lr": 0.01}, {"lr": 0.05}, {"algorithm": "las"}, {"algorithm": "stc"}):
        write_run(tmp_path, [0.5], **settings)
    central = write_run(tmp_path, [0.5], algorithm="centralised")
    everything = loaded(tmp_path)
    bounds = grouping.group_series([run for run in everything if run.path.stem == central])
    found = grouping.group_series([run for run in everything if run.path.stem != central])
    chosen, none = grouping.choose(found, bounds, ["stc", "FedAvg lr=0.05", "FEDAVG"])
    assert [series.label for series in chosen] == ["STC", "FedAvg lr=0.05", "FedAvg lr=0.01"]
    assert [series.style for series in chosen] == [0, 1, 2]
    assert none == []
    assert grouping.choose(found, bounds, ["centralised", "las"])[1] == bounds
    with pytest.raises(InputError, match=r"--methods 'FedAvg lr=0.5': .* \(did you mean FedAvg lr=0.05\?\); there are"):
        grouping.choose(found, bounds, ["FedAvg lr=0.5"])
    grouping.rename(found, ["FedAvg lr=0.05=FedAvg, lr=0.05", "STC=sparse"])
    assert {series.label for series in found} == {"FedAvg lr=0.01", "FedAvg, lr=0.05", "LaS-FL", "sparse"}
    with pytest.raises(InputError, match="--label 'FedAvg=x'"):
        grouping.rename(found, ["FedAvg=x"])
    with pytest.raises(InputError, match="2 series would have the label 'LaS-FL'"):
        grouping.rename(found, ["STC=LaS-FL"])


def test_the_reference_is_the_plain_fedavg_that_validation_prefers(tmp_path):
    write_run(tmp_path, [0.9], validation=[0.5], lr=0.01)
    write_run(tmp_path, [0.7], validation=[0.6], lr=0.05)
    for others in ({"value_bits": 8}, {"downlink": "sparse"}, {"local": "swa"}, {"algorithm": "las"}, {"dropout": 0.5}):
        write_run(tmp_path, [0.9], **others)
    found = grouping.group_series(loaded(tmp_path))
    reference = grouping.pick_reference(found)
    assert [series.settings["lr"] for series in reference.of.values()] == ["0.05"]
    assert reference.words().endswith(
        "lr=0.05 (of plain FedAvg, the one whose best round has the best validation accuracy)"
    )
    write_run(tmp_path, [0.7], validation=[0.9], lr=0.5)
    change(tmp_path, write_run(tmp_path, [0.7], seed=1, lr=0.5), finished=False)  # what survived is no reference
    found = grouping.group_series(loaded(tmp_path))
    assert grouping.pick_reference(found).words().split(" (")[0] == reference.words().split(" (")[0]
    given = grouping.pick_reference(found, "LaS-FL")
    assert given.words() == "LaS-FL"
    with pytest.raises(
        InputError, match=r"'las': there is no such series \(did you mean LaS-FL\?\); there are 'FedAvg'"
    ):
        grouping.pick_reference(found, "las")


def test_a_single_plain_fedavg_was_not_chosen_and_without_one_there_is_no_reference(tmp_path):
    write_run(tmp_path, [0.9], algorithm="las")
    assert grouping.pick_reference(grouping.group_series(loaded(tmp_path))).words() == ""
    write_run(tmp_path, [0.9])
    assert grouping.pick_reference(grouping.group_series(loaded(tmp_path))).words() == "FedAvg"


def test_two_conventions_are_mixed_only_on_request(tmp_path):
    write_run(tmp_path, [0.9], algorithm="stc", shared_init=False)
    write_run(tmp_path, [0.9], algorithm="centralised", shared_init=False)
    found = grouping.group_series(loaded(tmp_path))
    assert comparable.convention(found) == (
        "Bytes: a client's first download, the whole initial model, counts (--no-shared_init)."
    )
    write_run(tmp_path, [0.9], algorithm="las", shared_init=True)
    found = grouping.group_series(loaded(tmp_path))
    with pytest.raises(
        InputError, match=r"counts in STC shared_init=False, but not in LaS-FL shared_init=True.*--mix"
    ) as e:
        comparable.convention(found)
    assert "\n" not in str(e.value)
    assert comparable.convention(found, mix=True).startswith("MIXED: ")
    shared = [series for series in found if series.algorithm in ("las", "centralised")]
    assert comparable.convention(shared) == "Bytes: nobody downloads the initial model (--shared_init)."
    assert comparable.convention([series for series in found if series.algorithm == "centralised"]) == ""


def test_series_of_several_versions_of_the_program_are_named(tmp_path):
    names = {
        method: [write_run(tmp_path, [0.5], algorithm=method, seed=seed) for seed in (0, 1)]
        for method in ("fedavg", "fedprox", "fedacg", "las")
    }
    for place, change_of in enumerate([{"code": "aaaa", "commit": "1" * 40}, {"code": "bbbb", "commit": "1" * 40}]):
        change(tmp_path, names["fedavg"][place], environment=change_of)  # other code of one commit
    for place, commit in enumerate("12"):  # the same code of two commits
        change(tmp_path, names["fedprox"][place], environment={"code": "aaaa", "commit": commit * 40})
    change(tmp_path, names["fedacg"][1], environment={"uncommitted_changes": True})
    (said,) = comparable.mixtures(grouping.group_series(loaded(tmp_path)))
    assert said == (
        "2 of 4 series mix runs of several versions of the program "
        "(0123456, 0123456 with uncommitted changes, aaaa, bbbb): FedAvg, FedACG."
    )


def test_series_of_several_data_are_named(tmp_path):
    names = [write_run(tmp_path, [0.5], seed=seed) for seed in (0, 1)]
    write_run(tmp_path, [0.5], algorithm="las", seed=1)
    assert comparable.mixtures(grouping.group_series(loaded(tmp_path))) == []
    change(tmp_path, names[1], data={"crc32": "ffffffff"})
    assert comparable.mixtures(grouping.group_series(loaded(tmp_path))) == [
        "1 of 2 series mix seeds whose data differ, CRC-32 (0bbb6c38, ffffffff): FedAvg.",
        "Runs of one seed had different data (CRC-32): seed 1 (0bbb6c38, ffffffff).",
    ]


def test_seeds_that_are_none_and_files_of_one_split_that_differ_are_said(tmp_path):
    """A split made by hand that was made again: its runs are named after another file, but the split's name is one."""
    for seed, algorithm, sha in ((0, "fedavg", "a" * 64), (1, "fedavg", "b" * 64), (0, "las", "c" * 64)):
        name = write_run(tmp_path, [0.5], seed=seed, algorithm=algorithm)
        change(tmp_path, name, settings={"dirichlet": None}, partition={"name": "patho", "sha256": sha})
    clash = "Runs on the split patho had different files for seed 0 (aaaaaaaa, cccccccc)."
    assert comparable.mixtures(grouping.group_series(loaded(tmp_path))) == [clash]
    for end in (".json", "_metrics.csv"):
        shutil.copy(tmp_path / f"{name}{end}", tmp_path / f"again{end}")
    found = grouping.group_series(loaded(tmp_path))
    assert [len(series.runs) for series in found] == [2, 2]
    repeated = "LaS-FL, patho, has seed 0 2 times: runs of one seed are no seeds of their own."
    assert comparable.mixtures(found) == [repeated, clash]


def test_each_way_to_split_has_code_of_its_own(tmp_path):
    for level, code in ((0.5, "aaaa"), ("iid", "bbbb")):
        for seed in (0, 1):
            change(tmp_path, write_run(tmp_path, [0.5], dirichlet=level, seed=seed), environment={"code": code})
    assert comparable.mixtures(grouping.group_series(loaded(tmp_path))) == []


def test_options_of_components_that_are_not_at_hand_keep_runs_apart(tmp_path):
    """Runs of a plugin's components, drawn without the plugin: what others have for options may be theirs, too."""
    for i, strength in enumerate((0.001, 1.0)):
        for seed, (settings, theirs) in enumerate(
            [
                ({"algorithm": "fedprox", "prox_momentum": strength}, {"algorithm": "ourprox"}),
                ({"n_client_epochs": 2 + i}, {"local": "smooth"}),
                ({"compressor": "topk", "sparsity": strength / 2}, {"compressor": "ourtopk"}),
            ]
        ):
            name = write_run(tmp_path, [0.9], seed=seed, **settings)
            change(tmp_path, name, settings=theirs)
    found = grouping.group_series(loaded(tmp_path))
    assert len(found) == 6
    assert all(len(series.runs) == 1 for series in found)


def test_what_does_not_differ_of_a_method_that_is_not_at_hand_is_not_told(tmp_path):
    for seed, strength in ((0, 2), (1, 2)):
        name = write_run(tmp_path, [0.5], seed=seed)
        change(tmp_path, name, settings={"algorithm": "mine", "strength": strength, "way": "a"}, title="Mine")
    write_run(tmp_path, [0.5], seed=2)
    assert labels_of(tmp_path) == ["FedAvg", "Mine"]
    change(tmp_path, name, settings={"strength": 3})
    assert labels_of(tmp_path) == ["FedAvg", "Mine strength=2", "Mine strength=3"]


def test_two_algorithms_of_one_title_are_told_apart_by_their_names(tmp_path):
    for seed, algorithm in ((0, "one"), (1, "other")):
        name = write_run(tmp_path, [0.5], seed=seed)
        change(tmp_path, name, settings={"algorithm": algorithm}, title="Mine")
    assert labels_of(tmp_path) == ["Mine (one)", "Mine (other)"]


def test_a_split_of_a_partition_that_is_not_at_hand_is_called_as_it_was(tmp_path):
    for seed, title in ((0, "2 tiles a client"), (1, None)):
        name = write_run(tmp_path, [0.5], seed=seed)
        split = {"name": "tiles-2"} | ({"title": title} if title else {})
        change(tmp_path, name, settings={"dirichlet": None, "partition": "tiles:2"}, partition=split)
    one, other = loaded(tmp_path)
    assert (one.level.title, other.level.title) == ("2 tiles a client", "tiles-2")
    assert one.level == other.level
