"""Merging rules by hand."""

import torch
from toy import build, one_round, vector


def stitched(layout, **options):
    """Return what LaS-FL makes of two clients of which both kept weight 0 and each one of weights 3 and 4."""
    deltas = torch.stack([vector(5, -1, 0, 3, 1, 4, 0), vector(-3, 1, 2, 0, -6, 0, 4)])
    server = build(layout, algorithm="las", sparsity=0.4, **options)
    return one_round(server, vector(10, 10, 10, 10, 10, 1, 1), deltas, vector(0.75, 0.25))


def test_stitching_over_all_and_with_a_prior_by_hand(layout):
    both = 10 + 0.75 * 5 - 0.25 * 3
    assert torch.equal(stitched(layout, stitch="all"), vector(both, 10, 10, 10 + 0.75 * 3, 10 - 0.25 * 6, 4, 2))
    halfway = stitched(layout, stitch="prior", stitch_prior=0.5)
    assert torch.allclose(halfway, vector(both, 10, 10, 10 + 0.75 * 3 / 0.875, 10 - 0.25 * 6 / 0.625, 4, 2))


def test_signs_step_where_the_weight_of_the_clients_points(layout):
    theta = vector(1, 1, 1, 1, 1, 7, 7)
    deltas = torch.stack([vector(9, -9, 9, 0, 1, 2, 0), vector(-1, -1, 1, 0, -9, 0, 4), vector(-1, 1, 1, 1, 2, 0, 0)])
    merged = one_round(build(layout, algorithm="signsgd", sign_step=0.5), theta, deltas, vector(0.5, 0.25, 0.25))
    assert torch.equal(merged, vector(1, 0.5, 1.5, 1.5, 1.5, 8, 8))
