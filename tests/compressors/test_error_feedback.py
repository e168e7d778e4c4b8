"""What clients did not send, by hand, and that none of it is lost."""

import torch
from conftest import train_round
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import FakeClient, build, cohort, let_train, send, vector

from fedmerge.client_update import ClientUpdate
from fedmerge.compressors.error_feedback import ErrorFeedback


def test_error_feedback_by_hand(layout):
    """Keeping one of three and one of two: what is left out is added to the client's next update, and to no other's."""
    server = build(layout, compressor="topk", sparsity=0.4, residual="client")
    theta = vector(0, 0, 0, 0, 0, 0, 0)
    (first,) = send(server, theta, [vector(4, 3, 1, 2, 1, 5, 6)], ids=[7])
    assert torch.equal(first.delta, vector(4, 0, 0, 2, 0, 5, 6))
    (other,) = send(server, theta, [vector(4, 3, 1, 2, 1, 5, 6)], ids=[8])
    assert torch.equal(other.delta, first.delta)
    (second,) = send(server, theta, [vector(4, 3, 1, 1, 0.5, 5, 6)], ids=[7])
    assert torch.equal(second.delta, vector(0, 6, 0, 0, 1.5, 5, 6))
    assert second.mask.tolist() == [False, True, False, False, True]


def test_what_rounding_took_off_is_kept_too(layout):
    server = build(layout, compressor="topk", sparsity=0.4, residual="client")
    client = FakeClient(vector(4, 3, 1, 2, 1, 0, 0), 7)
    sent = let_train(server, torch.zeros(7, dtype=torch.float64), client)
    server.compressor.acknowledge(client, ClientUpdate(sent.delta * 0.75, sent.mask))
    assert torch.equal(server.compressor.feedback.left[7], vector(1, 3, 1, 0.5, 1))


def test_who_sends_all_keeps_what_rounding_took_off(layout):
    server = build(layout, residual="client", value_bits=8)
    client = FakeClient(vector(4, 3, 1, 2, 1, 9, 9), 7)
    sent = let_train(server, torch.zeros(7, dtype=torch.float64), client)
    server.compressor.acknowledge(client, ClientUpdate(sent.delta * 0.75))
    assert torch.equal(server.compressor.feedback.left[7], vector(1, 0.75, 0.25, 0.5, 0.25))
    client = FakeClient(vector(0, 0, 0, 0, 0, 0, 0), 7, round=2)
    sent = let_train(server, torch.zeros(7, dtype=torch.float64), client)
    assert torch.equal(sent.delta, vector(1, 0.75, 0.25, 0.5, 0.25, 0, 0))


def test_momentum_of_updates_by_hand():
    """Velocity u = m u + change, what is left grows by u, and both are cleared where something was sent."""
    memory, sent = ErrorFeedback(0.5), torch.tensor([True, False])
    assert torch.equal(memory.add(1, vector(4, 2)), vector(4, 2))
    memory.sent(1, vector(3, 0), sent)
    assert torch.equal(memory.add(1, vector(1, 1)), vector(1 + 1, 2 + 1 + 1))
    memory.sent(1, vector(0, 4), ~sent)
    assert torch.equal(memory.add(1, vector(0, 0)), vector(2 + 0.5, 0))


def test_velocity_is_forgotten_where_everything_was_sent():
    memory = ErrorFeedback(0.5)
    memory.add(1, vector(4, 2))
    memory.sent(1, vector(4, 2), None)
    assert torch.equal(memory.add(1, vector(1, 1)), vector(1, 1))


@given(seed=st.integers(0, 10**6), keep=st.floats(0.01, 0.9))
@settings(max_examples=30)
def test_with_error_feedback_nothing_is_lost(seed, keep):
    """Whoever comes when: all that a client ever sent, and what it has left, are all that it ever trained."""
    server = build(compressor="topk", sparsity=keep, residual="client")
    g = torch.Generator().manual_seed(seed)
    trained, sent = torch.zeros(3, 9, dtype=torch.float64), torch.zeros(3, 9, dtype=torch.float64)
    for round in range(8):
        ids = torch.randperm(3, generator=g)[:2].tolist()
        theta, deltas, _ = cohort(seed + round, 2)
        trained[ids] += deltas[:, :9]
        sent[ids] += torch.stack([update.delta for update in send(server, theta, deltas, ids)])[:, :9]
    nothing = torch.zeros(9, dtype=torch.float64)
    left = torch.stack([server.compressor.feedback.left.get(i, nothing) for i in range(3)])
    assert torch.allclose(sent + left, trained)


def test_what_a_client_keeps_is_what_did_not_arrive(experiment, monkeypatch):
    """In one bit a value: what is left and what the server merged are together what the client trained."""
    run, arrived = experiment(algorithm="las", residual="client", value_bits=1), []
    monkeypatch.setattr(run.server, "keeps_all", True)  # so that merge() sees all updates
    monkeypatch.setattr(run.server.algorithm, "merge", lambda theta, step, got: arrived.extend(got.deltas) or theta)
    start, n = run.server.theta.clone(), run.server.layout.n_trainable
    train_round(run, 1)
    kept = run.server.compressor.feedback.left
    assert len(kept) == len(arrived) == 4
    for row, (client_id, left) in zip(arrived, kept.items(), strict=True):
        trained = run.clients.trainer.client(client_id, 1).train(start) - start
        assert torch.allclose(row[:n] + left, trained[:n], atol=1e-6)
