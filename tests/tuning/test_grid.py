"""Lines with values to try: what they stand for, and what is refused."""

import pytest

from fedmerge.errors import InputError
from fedmerge.tuning.grid import read_templates, template


def test_a_line_stands_for_all_combinations_in_order():
    words = ["--algorithm", "las", "{lr:", "0.1|0.03}", "--dataset", "DIGITS", "{--sparsity:0.5", "|", "0.1", "}"]
    points = template(words, "here").points()
    assert [values for values, _ in points] == [
        {"lr": "0.1", "sparsity": "0.5"},
        {"lr": "0.1", "sparsity": "0.1"},
        {"lr": "0.03", "sparsity": "0.5"},
        {"lr": "0.03", "sparsity": "0.1"},
    ]
    assert " ".join(points[2][1]) == "--algorithm las --lr 0.03 --dataset DIGITS --sparsity 0.5"


def test_flags_without_a_value_are_true_or_false():
    points = template(["{shared_init: true | false}"], "here").points()
    assert [words for _, words in points] == [["--shared_init"], ["--no-shared_init"]]


def test_the_grid_of_the_command_line_comes_after_its_flags():
    (first, *_, last) = template(["--algorithm", "las"], "here", ["lr=0.1,1e-3", "--optimizer=sgd,adam"]).points()
    assert first[1] == ["--algorithm", "las", "--lr", "0.1", "--optimizer", "sgd"]
    assert last[0] == {"lr": "1e-3", "optimizer": "adam"}


def test_a_list_is_read_as_experiments_are(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("# a comment\n\n--algorithm fedavg {lr: 0.1 | 0.2}  # another\n--algorithm las '{lr: 1 | 2}'\n")
    first, second = read_templates(path)
    assert first.where == f"{path}: line 3"
    assert [words for _, words in second.points()] == [["--algorithm", "las", "--lr", v] for v in "12"]


@pytest.mark.parametrize(
    ("words", "grid", "said"),
    [
        ("--lr 1", [], "no values to try"),
        ("{lr: 1 | 2", [], "no } ends '{lr: 1 | 2'"),
        ("{lr = 1 | 2}", [], "is not as"),
        ("{lr: 1 | }", [], "a value of lr is empty"),
        ("{lr: 1 | 1}", [], "lr has the value 1 twice"),
        ("{lr: 1 | 2} {lr: 3}", [], "lr is tried twice"),
        ("{lr: 1 | 2}", ["lr=3"], "lr is tried twice"),
        ("{keep: 0.1 | 0.2} {sparsity: 0.3}", [], "sparsity is tried twice"),
        ("--lr=1 {lr: 1 | 2}", [], "--lr is given"),
        ("--keep 0.1 {sparsity: 1 | 2}", [], "--sparsity is given"),
        ("--no-shared_init {shared_init: true | false}", [], "--shared_init is given"),
        ("{seed: 1 | 2}", [], "--seed is set here"),
        ("--out x {lr: 1 | 2}", [], "--out is set here"),
        ("--lr 1", ["momentum"], "--grid momentum: is not as"),
        ("{lr: %s} {momentum: %s}" % (("|".join(map(str, range(999))),) * 2), [], "998,001 combinations"),
    ],
)
def test_what_is_no_grid_is_refused_in_one_line(words, grid, said):
    with pytest.raises(InputError) as refused:
        template(words.split(), "list.txt: line 7", grid)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
