"""What top-k chooses to send, by hand."""

import pytest
import torch
from toy import LAYOUT, FakeClient, build, cohort, let_train, send, vector

from fedmerge.compressors.topk import TopK


def kept(compressor, delta):
    """The places of the weights that are sent of a change `delta [dim]`."""
    n = compressor.layout.n_trainable
    return compressor.choose(delta[:n], None, FakeClient(delta)).nonzero().view(-1).tolist()


def test_global_scope_by_hand(layout):
    compressor = TopK(layout, sparsity=0.4, mask_scope="global")
    assert kept(compressor, vector(5, -4, 3, 2, 1, 0, 0)) == [0, 1]


def test_a_floor_gives_every_layer_its_least_share_by_hand():
    """Half of nine weights: four. Of the layers (4, 3, 2), a quarter of that share is at least one weight each."""
    delta = vector(9, 8, 7, 6, 0.1, 0.2, 0.3, 0.5, 0.4, 0, 0, 0)
    assert kept(TopK(LAYOUT, sparsity=0.5, mask_scope="floor", mask_floor=0.25), delta) == [0, 1, 6, 7]
    assert kept(TopK(LAYOUT, sparsity=0.5, mask_scope="global"), delta) == [0, 1, 2, 3]


def test_a_floor_above_the_share_is_kept(layout):
    """One weight of each layer is the least there is, though the share asks for one in all."""
    compressor = TopK(layout, sparsity=0.2, mask_scope="floor", mask_floor=1.0)
    assert kept(compressor, vector(9, 8, 7, 1, 2, 0, 0)) == [0, 4]


def test_the_share_kept_falls_to_the_one_asked_for(layout):
    compressor = TopK(layout, sparsity=0.01, warmup_rounds=2, warmup_sparsity=0.16)
    assert [compressor.kept_share(r) for r in (1, 2, 3, 4, 99)] == pytest.approx([0.16, 0.04, 0.01, 0.01, 0.01])
    assert TopK(layout, sparsity=0.3).kept_share(1) == 0.3
    wide = build(compressor="topk", sparsity=0.01, warmup_rounds=2, warmup_sparsity=1.0)
    theta, deltas, _ = cohort(0)
    assert [int(send(wide, theta, deltas, round=r)[0].mask.sum()) for r in (1, 3)] == [9, 3]


def test_its_options_reach_the_clients_mask_learning(layout):
    asked = {}

    class Learner(FakeClient):
        def learn_mask(self, start, delta, mask, **learning):
            asked.update(learning, start=start, mask=mask)
            return torch.tensor([False, True, False, False, True])

    theta, delta = vector(1, 1, 1, 1, 1, 1, 1), vector(5, -1, 0, 3, 1, 4, 0)
    options = {"graft_epochs": 3, "graft_lr": 2.0, "sigmoid_bias": 4.0, "l1_strength": 0.5}
    server = build(layout, algorithm="las", sparsity=0.4, localiser="learned", **options)
    client = Learner(delta)
    client.start = theta
    update = let_train(server, theta, client)
    assert torch.equal(asked.pop("start"), theta)
    assert asked.pop("mask").tolist() == [True, False, False, True, False]
    assert asked == {"epochs": 3, "lr": 2.0, "bias": 4.0, "l1_strength": 0.5}
    assert torch.equal(update.delta, vector(0, -1, 0, 0, 1, 4, 0))
