"""Laws over the registries: what reduces to FedAvg, and what holds of every component, on a model of nine weights."""

import copy
import inspect
from pathlib import Path

import pytest
import torch
from conftest import train_round
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import LAYOUT, build, cohort, one_round

from fedmerge.config.options import all_options
from fedmerge.networks.flat_model import Layout
from fedmerge.registry import ALGORITHMS, AXES, COMPRESSORS, MERGING_RULES, SHELVES, Shelf, specs

REDUCED = {  # settings at which an algorithm is FedAvg
    "fedavg": {},
    "fedprox": {"prox_momentum": 0.0},
    "fedacg": {"acg_momentum": 0.0, "acg_beta": 0.0},
    "las": {"sparsity": 1.0},
    "topk": {"sparsity": 1.0},
    "stc": {"sparsity": 1.0},
    "krum": {"liars": 0.0},
}
STITCHES = [
    {},
    {"stitch": "all", "residual": "client"},
    {"residual": "server", "stitch": "prior"},
    {"mask_scope": "floor"},
]
MOMENTA = [{"residual": "client", "residual_momentum": 0.5, "server_momentum": 0.5}]
# One component at a time, beside FedAvg's own: whether or not a published name has it.
PARTS = [
    *({"algorithm": name} for name in sorted(ALGORITHMS)),
    *({"merge": name} for name in sorted(MERGING_RULES)),
    *({"compressor": name} for name in sorted(COMPRESSORS)),
    *({"compressor": name, "residual": "client", "value_bits": 8} for name in sorted(COMPRESSORS)),
]


def is_averaged(server):
    """Whether the server's step is of means; those of rules that need all updates are of what clients may lie about."""
    return not server.keeps_all


def shares_buffers(server):
    own = server.algorithm.own
    return own is None or bool((own < LAYOUT.n_trainable).all())


@pytest.mark.parametrize("name", REDUCED)
@given(seed=st.integers(0, 10**6), clients=st.integers(1, 6))
@settings(max_examples=20)
def test_each_reduces_to_fedavg(name, seed, clients):
    server, fedavg, theta = build(algorithm=name, **REDUCED[name]), build(), cohort(seed)[0]
    expected = theta
    for i in range(2):
        _, deltas, p = cohort(seed + i, clients)
        theta = one_round(server, theta, deltas, p)
        expected = one_round(fedavg, expected, deltas, p)
    assert torch.allclose(theta, expected)


@pytest.mark.parametrize("options", STITCHES, ids=str)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=20)
def test_las_keeping_everything_is_fedavg_however_it_is_stitched(options, seed):
    server, fedavg, theta = build(algorithm="las", sparsity=1.0, **options), build(), cohort(seed)[0]
    expected = theta
    for i in range(2):
        _, deltas, p = cohort(seed + i)
        theta, expected = one_round(server, theta, deltas, p), one_round(fedavg, expected, deltas, p)
    assert torch.allclose(theta, expected)


@pytest.mark.parametrize("part", PARTS, ids=str)
@given(seed=st.integers(0, 10**6), order=st.permutations(range(4)))
@settings(max_examples=20)
def test_the_order_of_clients_does_not_matter(part, seed, order):
    merged = []
    for i in (range(4), order):
        server, theta = build(**part), cohort(seed)[0]
        for round in (1, 2):
            _, deltas, p = cohort(seed + round)
            theta = one_round(server, theta, deltas[list(i)], p[list(i)], ids=i, round=round)
        merged.append(theta)
    assert torch.allclose(*merged)


@pytest.mark.parametrize(
    "part", [part for part in PARTS if is_averaged(build(**part)) and shares_buffers(build(**part))], ids=str
)
def test_buffers_are_averaged_whatever_is_done_to_weights(part):
    theta, deltas, p = cohort(3)
    server = build(**part)
    shares = p if server.settings.weighting == "samples" else torch.full_like(p, 1 / len(p))
    for round in (1, 2):  # the second round has momentum
        merged = one_round(server, theta, deltas, p, round=round)
        assert torch.allclose(merged[9:], theta[9:] + shares @ deltas[:, 9:])
        theta = merged


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_nothing_given_is_changed(part):
    theta, deltas, p = cohort(4)
    before = [t.clone() for t in (theta, deltas, p)]
    server = build(**part)
    for round in (1, 2):
        one_round(server, theta, deltas, p, round=round)
    assert all(torch.equal(a, b) for a, b in zip((theta, deltas, p), before, strict=True))


@pytest.mark.parametrize("part", [*PARTS, *({"algorithm": "las"} | o for o in STITCHES[1:] + MOMENTA)], ids=str)
def test_a_loaded_state_continues_like_the_one_it_came_from(part):
    theta, deltas, p = cohort(5)
    server, other = (build(**part) for _ in range(2))
    theta = one_round(server, theta, deltas, p)
    for mine, yours in zip(server.stateful, other.stateful, strict=True):
        yours.load_state_dict(copy.deepcopy(mine.state_dict()))
    _, deltas, p = cohort(6)
    again = [one_round(either, theta, deltas, p, round=2) for either in (server, other)]
    assert torch.equal(*again)


# --------------------------------------------------------------------------------------------------------------------
# The shelves


@pytest.mark.parametrize("shelf", sorted(AXES))
def test_the_command_line_reads_what_the_code_has(shelf):
    """Options, defaults and presets are read from the source, without importing it."""
    for name, spec in specs(shelf).items():
        component = Shelf(shelf)[name]
        options = component.options if inspect.isclass(component) else component.registered.get("options", {})
        assert spec.options == options
        own = vars(component)
        assert own.get("defaults", {}).items() <= spec.defaults.items()
        assert spec.presets == own.get("presets", {})
        flags = set(spec.defaults) | {flag for preset in spec.presets.values() for flag in preset}
        assert flags <= set(all_options())
        assert spec.summary


@pytest.mark.parametrize("shelf", sorted(SHELVES))
def test_a_shelf_gives_what_its_files_register(shelf):
    for name, component in Shelf(shelf).items():
        spec = specs(shelf)[name]
        assert component.__name__ == spec.object
        assert Path(inspect.getsourcefile(component)).resolve() == spec.file


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_what_an_algorithm_sends_besides_has_its_length(name):
    server = build(algorithm=name)
    algorithm, layout = server.algorithm, server.layout
    assert isinstance(layout, Layout)
    assert algorithm.upload_dim == layout.dim + len(algorithm.uploads) * layout.n_trainable
    theta = cohort(0)[0]
    assert len(algorithm.whole_broadcast(theta)) == layout.dim + len(algorithm.broadcasts) * layout.n_trainable


@pytest.mark.parametrize(
    "reduced",
    [
        {"algorithm": "fedprox", "prox_momentum": 0.0},
        {"algorithm": "fedacg", "acg_momentum": 0.0},
        {"algorithm": "las", "sparsity": 1.0},
    ],
    ids=str,
)
def test_zero_strength_or_keeping_everything_trains_fedavgs_model(experiment, reduced):
    models = []
    for options in ({}, reduced):
        run = experiment(norm="batch", dirichlet=0.5, min_client_samples=2, **options)
        for round in (1, 2, 3):
            train_round(run, round)
        models.append(run.server.theta)
    assert (models[0] - models[1]).norm() < 1e-3 * models[0].norm()
