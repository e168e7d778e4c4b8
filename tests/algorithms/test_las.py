"""LaS-FL and what is like it by hand, and against twins that go entry by entry."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from toy import LAYOUT, SIZES, build, cohort, merge, one_round, send, vector

from fedmerge.client_update import ClientUpdate


def las(layout=LAYOUT, **options):
    return build(layout, algorithm="las", **options)


def test_las_by_hand(layout):
    """One of three weights of layer a and one of two of layer b are kept; where two clients overlap, their mean."""
    theta = vector(10, 10, 10, 10, 10, 1, 1)
    deltas = torch.stack([vector(5, -1, 0, 3, 1, 4, 0), vector(-3, 1, 2, 0, -6, 0, 4)])
    sent = send(las(layout, sparsity=0.4), theta, deltas)
    masks = [update.mask.tolist() for update in sent]
    assert masks == [[True, False, False, True, False], [True, False, False, False, True]]
    assert torch.equal(sent[0].delta, vector(5, 0, 0, 3, 0, 4, 0))
    assert torch.equal(sent[1].delta, vector(-3, 0, 0, 0, -6, 0, 4))
    merged = one_round(las(layout, sparsity=0.4), theta, deltas, vector(0.75, 0.25))
    assert torch.equal(merged, vector(10 + 0.75 * 5 - 0.25 * 3, 10, 10, 13, 4, 4, 2))


def test_server_momentum_by_hand(layout):
    server = las(layout, sparsity=1.0, server_momentum=0.5)
    theta = one_round(server, vector(0, 0, 0, 0, 0, 7, 7), [vector(4, 0, 2, 0, 0, 2, 0)] * 2, vector(0.5, 0.5))
    assert torch.equal(theta, vector(4, 0, 2, 0, 0, 9, 7))
    theta = one_round(server, theta, [vector(0, 1, 0, 0, 0, 0, 1)] * 2, vector(0.5, 0.5))
    assert torch.equal(theta, vector(6, 1, 3, 0, 0, 9, 8))
    theta = one_round(server, theta, [vector(0, 0, 0, 0, 0, 0, 0)] * 2, vector(0.5, 0.5))
    assert torch.equal(theta, vector(7, 1.5, 3.5, 0, 0, 9, 8))


def test_the_server_applies_no_more_than_the_share_and_keeps_the_rest():
    server, plain = (las(sparsity=0.4, stitch="all", residual=kept) for kept in ("server", "none"))
    start, asked = cohort(0)[0], torch.zeros(12, dtype=torch.float64)
    theta = start
    for round in range(6):
        _, deltas, p = cohort(round)
        asked += one_round(plain, theta, deltas, p) - theta
        before, theta = theta, one_round(server, theta, deltas, p)
        assert [int(part.sum()) for part in (theta != before)[:9].split(SIZES)] == [2, 1, 1]
    assert torch.allclose(theta[:9] + server.algorithm.waiting, (start + asked)[:9])


def test_the_server_chooses_of_all_that_waits(layout):
    """What was left out of an earlier round goes before a smaller step of this one; momentum is of the whole step."""
    theta, p = vector(0, 0, 0, 0, 0, 0, 0), vector(1)
    options = {"sparsity": 0.2, "mask_scope": "global", "stitch": "all", "residual": "server", "server_momentum": 0.5}
    server = las(layout, **options)
    everything = torch.ones(5, dtype=torch.bool)
    theta = merge(server, theta, [ClientUpdate(vector(8, 6, 0, 0, 0, 0, 0), everything)], p)
    assert torch.equal(theta, vector(8, 0, 0, 0, 0, 0, 0))
    # the step is now (4, 3, 1), and (0, 6, 0) waits
    theta = merge(server, theta, [ClientUpdate(vector(0, 0, 1, 0, 0, 0, 0), everything)], p)
    assert torch.equal(theta, vector(8, 9, 0, 0, 0, 0, 0))
    assert torch.equal(server.algorithm.waiting, vector(4, 0, 1, 0, 0))
    assert torch.equal(server.algorithm.velocity, vector(4, 3, 1, 0, 0))


def test_a_weight_nobody_kept_stays_the_servers():
    theta, deltas, p = cohort(7)
    sent = send(las(sparsity=0.3), theta, deltas)
    merged = merge(las(), theta, sent, p)
    untouched = ~torch.stack([update.mask for update in sent]).any(0)
    assert untouched.any()
    assert torch.equal(merged[:9][untouched], theta[:9][untouched])


# --------------------------------------------------------------------------------------------------------------------
# Slow twins


def as_dict(vector_):
    return dict(zip(("a", "b", "c", "buffers"), vector_.split([*SIZES, 3]), strict=True))


def twin_las(theta, deltas, p, keep):
    """Entry by entry: sort a layer's changes, keep the largest, average those that kept the entry."""
    merged = {k: v.clone() for k, v in as_dict(theta).items()}
    clients = [as_dict(d) for d in deltas]
    for name, layer in merged.items():
        if name == "buffers":
            layer += sum(w * c[name] for w, c in zip(p, clients, strict=True))
            continue
        k = max(1, round(keep * len(layer)))
        kept = [sorted(range(len(layer)), key=lambda i: -abs(c[name][i].item()))[:k] for c in clients]
        for i in range(len(layer)):
            voters = [j for j in range(len(clients)) if i in kept[j]]
            if voters:
                layer[i] += sum(p[j] * clients[j][name][i] for j in voters) / sum(p[j] for j in voters)
    return torch.cat(list(merged.values()))


def twin_topk(theta, rounds, keep):
    """Top-k with memory (Stich et al. 2018, Algorithm 1), client by client and entry by entry; no client skips."""
    theta, memory = theta.clone(), {}
    for deltas, p in rounds:
        step = [0.0] * 9
        for number, (delta, weight) in enumerate(zip(deltas[:, :9].tolist(), p.tolist(), strict=True)):
            have = [d + m for d, m in zip(delta, memory.get(number, [0.0] * 9), strict=True)]
            kept = sorted(range(9), key=lambda i: -abs(have[i]))[: max(1, round(keep * 9))]
            step = [s + weight * (have[i] if i in kept else 0) for i, s in enumerate(step)]
            memory[number] = [0.0 if i in kept else h for i, h in enumerate(have)]
        theta[:9] += torch.tensor(step, dtype=torch.float64)
        theta[9:] += p @ deltas[:, 9:]
    return theta


@given(seed=st.integers(0, 10**6), clients=st.integers(1, 5), keep=st.floats(0.01, 1))
def test_las_equals_its_twin(seed, clients, keep):
    theta, deltas, p = cohort(seed, clients)
    merged = one_round(las(sparsity=keep), theta, deltas, p)
    assert torch.allclose(merged, twin_las(theta, deltas, p, keep))


@given(seed=st.integers(0, 10**6), keep=st.floats(0.01, 1))
def test_topk_equals_its_twin_over_four_rounds(seed, keep):
    server, rounds = build(algorithm="topk", sparsity=keep), [cohort(seed + i)[1:] for i in range(4)]
    start = theta = cohort(seed)[0]
    for deltas, p in rounds:
        theta = one_round(server, theta, deltas, p)
    assert torch.allclose(theta, twin_topk(start, rounds, keep))
