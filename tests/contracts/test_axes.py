"""Server algorithm, local method, compressor and merging rule combine, or are refused in a line that says why."""

import itertools

import pytest
import torch
from few_digits import TINY, few_digits

import fedalg
from fedmerge.config.resolve import resolve
from fedmerge.errors import InputError
from fedmerge.registry import AXES, one_look, requirements, specs
from fedmerge.simulation.experiment import assemble

PAIRS = [
    ((one, first), (other, second))
    for one, other in itertools.combinations(AXES, 2)
    for first in sorted(specs(one))
    for second in sorted(specs(other))
]


def pairs_of(settings):
    """Return the pairs of components in settings {axis: name}."""
    named = [(axis, settings[axis]) for axis in AXES if axis in settings]
    return set(itertools.combinations(named, 2))


@one_look()
def covering():
    """Return settings of all four axes in which every pair is that goes together, and the pairs that do not."""
    requires = {(axis, name): requirements(spec) for axis in AXES for name, spec in specs(axis).items()}

    def refuses(one, other):
        return other[1] not in requires[one].get(other[0], (other[1],))

    refused = {pair for pair in PAIRS if refuses(*pair) or refuses(*pair[::-1])}
    left, rows = set(PAIRS) - refused, []
    while left:
        row = dict(min(left))  # and what else of pairs that are left goes with it
        for axis in AXES:
            if axis not in row:
                choices = [row | {axis: name} for name in sorted(specs(axis))]
                choices = [choice for choice in choices if not refused & pairs_of(choice)]
                row = max(choices, key=lambda choice: len(left & pairs_of(choice)))
        rows.append({axis: row[axis] for axis in AXES})
        left -= pairs_of(rows[-1])
    return rows, refused


ROWS, REFUSED = covering()


pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.fixture(scope="module")
def data(small_networks):
    return few_digits()


def trained(data, **settings):
    run = assemble(resolve({**TINY, **settings}), *data, torch.device("cpu"))
    fedalg.run_rounds(run)
    return run


def check(data, settings):
    """Train two rounds, or be refused in a line that says why; return whether it trained."""
    if settings.get("algorithm") == "centralised":
        settings = settings | {"n_clients": 1, "participation": 1.0}
        splits, parts = data
        data = splits, [torch.cat(parts)]
    try:
        run = trained(data, **settings)
    except InputError as error:
        said = str(error)
        assert "\n" not in said
        assert any(f"--{flag}" in said for flag in (*settings, "residual"))
        return False
    assert torch.isfinite(run.server.served()).all()
    first, second = run.history.rows
    assert first["clients"] == second["clients"] >= 1
    assert 0 < second["kept_share"] <= 1
    assert set(fedalg.COLUMNS) <= set(second) | {"epoch"}
    return True


@pytest.mark.slow
@pytest.mark.parametrize("settings", ROWS, ids=lambda settings: "-".join(settings.values()))
def test_all_that_go_together_train_in_pairs_with_each_other(settings, data):
    if not check(data, settings):  # for what two of them do: the others train
        assert any(check(data, dict(pair)) for pair in sorted(pairs_of(settings)))


@pytest.mark.slow
def test_what_requires_another_component_is_refused(data):
    assert not any(check(data, dict(pair)) for pair in sorted(REFUSED))


@pytest.mark.slow
@one_look()
def test_what_is_refused_is_known(data):
    refused = []
    for one, other in PAIRS:
        try:
            resolve({**TINY, **dict([one, other]), "n_clients": 1, "participation": 1.0})
        except InputError:
            refused.append((one[1], other[1]))
    several = {"lss", "lss_budget", "lss_published", "soups", "swa", "swad", "head_first"}  # no end of one run of steps
    known = {(local, name) for local in several for name in ("fednova", "scaffold")}
    known |= {(rule, "fednova") for rule in ("median", "sign", "trimmed_mean")}  # which take no weights of clients
    both = {"mixture", "apfl"}  # neither goes without the other
    known |= {(one[1], other[1]) for one, other in PAIRS if len(both & {one[1], other[1]}) == 1}
    known -= {(name, "apfl") for name in specs("compressor").keys() | specs("merge").keys()}  # which brings its own
    assert set(refused) == known | {("none", "topk")}  # whose error feedback has nothing to keep


@pytest.mark.parametrize("name", sorted(specs("algorithm")))
def test_all_four_at_once(name, data):
    if name == "centralised":
        pytest.skip("it has one client")
    residual = {} if specs("algorithm")[name].defaults.get("residual") else {"residual": "client"}
    able = requirements(specs("algorithm")[name]).get("local", ("moon",))
    local = "moon" if "moon" in able else able[0]
    run = trained(data, algorithm=name, local=local, compressor="randk", merge="ties", **residual)
    assert torch.isfinite(run.server.served()).all()
    whole = run.server.crossing.n_weights / run.model.layout.n_trainable  # of all weights
    assert 0.1 < run.history.rows[0]["kept_share"] / (whole if name == "ssfl" else 1) < 0.3
