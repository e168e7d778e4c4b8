"""Which point is chosen, and what is said of it, by hand."""

import math

import pytest

from fedmerge.tuning.choice import Point, choose, has_more
from fedmerge.tuning.grid import Group
from fedmerge.tuning.report import as_json, as_markdown, conclusions


def point(lr, *accuracies, failed=None, **more):
    return Point({"lr": lr, **more}, ["--lr", lr], dict(enumerate(accuracies)), failed or {})


def chosen(*points, seeds=(0, 1), groups=None):
    groups = groups or [Group("lr", tuple(one.values["lr"] for one in points))]
    choice = choose(points, groups)
    return choice, conclusions(choice, seeds)


def test_the_mean_over_seeds_decides():
    choice, said = chosen(point("0.1", 0.9, 0.5), point("0.2", 0.8, 0.7), point("0.3", 0.6, 0.6))
    assert [one.values["lr"] for one in choice.points] == ["0.2", "0.1", "0.3"]
    assert choice.best.mean == pytest.approx(0.75)
    assert choice.margin == pytest.approx([-0.1, 0.2])
    assert said == [
        "**lr=0.2**: 75.00 ± 7.07",
        "5.00 points ahead of lr=0.1 (-10.00, +20.00 by the seed): with these seeds, the two are not told apart",
    ]


def test_a_seed_that_failed_rules_a_point_out_however_good_the_others_are():
    choice, said = chosen(point("0.1", 0.5, 0.5), point("9", 0.9, failed={1: "failed after round 1: not finite"}))
    assert choice.best.values == {"lr": "0.1"}
    assert choice.second is None
    assert said == ["**lr=0.1**: 50.00 ± 0.00", "lr=0.1 is the smallest that was tried: try smaller ones"]


def test_where_all_failed_nothing_is_chosen():
    choice, said = chosen(point("8", failed={0: "failed"}), point("9", failed={0: "failed"}))
    assert choice.best is None
    assert choice.at_end == []
    assert said == ["**nothing can be chosen**: of every point a run failed"]


def test_of_equals_the_first_is_chosen():
    choice, said = chosen(point("2", 0.5), point("1", 0.5), point("3", 0.5), seeds=[0])
    assert choice.best.values == {"lr": "2"}
    assert said[1] == "0.00 points ahead of lr=1, with one seed: how much of it is chance, it cannot tell"


@pytest.mark.parametrize(
    ("values", "best", "end"),
    [
        (["0.1", "1e-3", "0.01"], 0, [("lr", "0.1", "largest")]),
        (["0.1", "1e-3", "0.01"], 1, [("lr", "1e-3", "smallest")]),
        (["0.1", "1e-3", "0.01"], 2, []),
        (["iid", "0.5"], 1, []),
        (["nan", "0.5"], 1, []),
        (["0.1"], 0, []),
    ],
)
def test_a_best_at_the_end_of_numbers_is_said(values, best, end):
    points = [point(value, 1.0 if i == best else 0.5) for i, value in enumerate(values)]
    assert chosen(*points)[0].at_end == end


def test_one_end_does_not_hide_another():
    groups = [Group("lr", ("1", "2")), Group("momentum", ("0", "0.9"))]
    points = [point("1", 0.1, momentum="0"), point("2", 0.9, momentum="0")]
    choice, _ = chosen(*points, groups=groups)
    assert choice.at_end == [("lr", "2", "largest")]  # no momentum is less than 0


@pytest.mark.parametrize(
    ("name", "number", "smaller", "larger"),
    [
        ("lr", 0.1, True, True),
        ("momentum", 0.0, False, True),
        ("momentum", 0.9, True, True),
        ("participation", 1.0, True, False),
        ("n_client_epochs", 1.0, False, True),
        ("rounds", 30.0, True, True),
        ("image_size", 64.0, True, True),
        ("value_bits", 16.0, True, True),
        ("value_bits", 32.0, True, False),
        ("dirichlet", 0.1, True, True),
        ("seed", 0.0, False, True),
        ("lora_layers", 1.0, True, True),
        ("of_no_component", 1.0, True, True),
    ],
)
def test_which_numbers_have_others_beyond_them(name, number, smaller, larger):
    assert (has_more(name, number, "smallest"), has_more(name, number, "largest")) == (smaller, larger)


class Template:
    parts, groups = ("--algorithm", "fedavg", Group("lr", ("1", "2"))), [Group("lr", ("1", "2"))]


def test_the_report_has_all_points_in_order():
    choice, _ = chosen(point("1", 0.25, 0.75), point("2", 0.5, failed={1: "failed: a | b"}))
    report = as_markdown([Template], [choice], [0, 1], "best")
    assert "validation accuracy of the best round" in report
    assert "\n## `--algorithm fedavg`\n" in report
    assert report.endswith(
        "\n| lr | validation accuracy |\n|---|---|\n| 1 | 50.00 ± 35.36 |\n| 2 | seed 1: failed: a \\| b |\n"
    )
    told = as_json(Template, choice)
    assert told["chosen"] == {"lr": "1"}
    assert told["margin"] is None
    assert told["points"][0] == {"values": {"lr": "1"}, "mean": 0.5, "by_seed": {"0": 0.25, "1": 0.75}, "failed": {}}
    assert told["points"][1]["mean"] is None


def test_the_deviation_is_of_a_sample_and_none_of_one():
    assert point("1", 0.25, 0.75).deviation == pytest.approx(0.25 * math.sqrt(2))
    assert math.isnan(point("1", 0.25).deviation)
