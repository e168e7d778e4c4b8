"""FedAvg by hand, and against its twin on dicts of tensors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy import SIZES, build, cohort, one_round, vector

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.algorithms.fedprox import FedProx


def test_fedavg_by_hand(layout):
    theta = vector(0, 0, 0, 0, 1, 10, 20)
    deltas = torch.stack([vector(1, 0, 0, 0, 4, 8, 0), vector(0, 2, 0, 0, 4, 0, 4)])
    merged = one_round(build(layout), theta, deltas, vector(0.25, 0.75))
    assert torch.equal(merged, vector(0.25, 1.5, 0, 0, 5, 12, 23))


def test_the_correction_of_fedprox_by_hand(layout):
    algorithm = FedProx(layout, prox_momentum=0.5)
    correction = algorithm.gradient_correction(vector(1, 2, 3, 4, 5), vector(0, 2, 4, 4, 4), client=None)
    assert torch.equal(correction, vector(0.5, 0, -0.5, 0, 0.5))


def test_an_unknown_option_is_refused(layout):
    with pytest.raises(TypeError, match="FedProx has no option mu"):
        FedProx(layout, mu=1)


def test_vectors_that_are_sent_besides_are_put_together_and_taken_apart(layout):
    delta, control, other = torch.arange(7.0), torch.arange(5.0) + 10, torch.arange(5.0) + 20
    algorithm = FedAvg(layout)
    row = algorithm.joined(delta, {"control": control, "other": other})
    assert row.tolist() == [*range(7), *range(10, 15), *range(20, 25)]
    vector, more = algorithm.parted(row, ("control", "other"))
    assert torch.equal(vector, delta)
    assert torch.equal(more["control"], control)
    assert torch.equal(more["other"], other)
    assert algorithm.joined(delta, {}) is delta


# A slow twin: dictionaries of tensors and loops, as the papers' codes have them


def as_dict(vector_):
    return dict(zip(("a", "b", "c", "buffers"), vector_.split([*SIZES, 3]), strict=True))


def twin(theta, deltas, p):
    clients, names = [as_dict(d) for d in deltas], as_dict(theta).items()
    return torch.cat([v + sum(w * c[k] for w, c in zip(p, clients, strict=True)) for k, v in names])


@given(seed=st.integers(0, 10**6), clients=st.integers(1, 6))
def test_fedavg_equals_its_twin(seed, clients):
    theta, deltas, p = cohort(seed, clients)
    assert torch.allclose(one_round(build(), theta, deltas, p), twin(theta, deltas, p))
