"""What clients download, against a slow account that keeps every version; their copies against the server's model."""

import pytest
import torch

from fedmerge import wire
from fedmerge.client_update import ClientUpdate
from fedmerge.networks.flat_model import Layout
from fedmerge.randomness import generator
from fedmerge.wire import downlink
from fedmerge.wire.downlink import Downlink, DownlinkSettings

N, BUFFERS, CLIENTS = 4000, 6, 9
LAYOUT = Layout(names=("a", "b"), sizes=(3000, 1000), n_trainable=N, dim=N + BUFFERS)
MODES = [("dense", 32), ("delta", 32), ("sparse", 32), ("sparse", 16), ("sparse", 8), ("sparse", 1)]


def rounds(seed, n, share=0.05):
    """Yield n times (clients that come, change of the model [dim] that follows); no client comes every time."""
    g = torch.Generator().manual_seed(seed)
    for _ in range(n):
        change = torch.randn(LAYOUT.dim, generator=g)
        change[:N] *= torch.rand(N, generator=g) < share
        yield sorted(torch.randperm(CLIENTS, generator=g)[:3].tolist()), change


def make(n_clients, mode="delta", model=None, n_buffers=0, **settings):
    """Return a Downlink that begins with `model [dim]`."""
    return Downlink(start() if model is None else model, N, n_clients, DownlinkSettings(mode, **settings), n_buffers)


def start():
    return torch.randn(LAYOUT.dim, generator=torch.Generator().manual_seed(0))


def message_bytes(mask, model, bits=32):
    return len(wire.encode(wire.pack(ClientUpdate(model, mask), N, bits)))


@pytest.mark.parametrize("shared_init", [False, True])
@pytest.mark.parametrize(("mode", "bits"), MODES)
def test_every_client_holds_the_servers_model_bit_for_bit_though_it_skips_rounds(mode, bits, shared_init):
    """`real`: what a client holds is made of nothing but its own old copy and of bytes."""
    theta = start()
    settings = {"mode": mode, "bits": bits, "keep": 0.02, "shared_init": shared_init}
    real, counted = (make(CLIENTS, **settings, real=real) for real in (True, False))
    away = 0
    for version, (clients, change) in enumerate(rounds(1, 25)):
        for number in clients:
            away = max(away, version - (real.seen[number] or 0))
            (size, model), (other_size, other) = real.download(number), counted.download(number)
            assert size == other_size
            assert torch.equal(model, other)
            assert torch.equal(model, real.model)
            assert real.copies[number].numpy().tobytes() == real.model.numpy().tobytes()
        theta = theta + change
        real.publish(theta)
        counted.publish(theta)
        assert torch.equal(real.model, counted.model)
    assert away >= 5


@pytest.mark.slow
@pytest.mark.parametrize("shared_init", [False, True])
@pytest.mark.parametrize(("mode", "bits"), [*MODES, ("individual", 8)])
def test_buffers_that_have_not_changed_since_are_not_sent(mode, bits, shared_init):
    """They change in every fifth round; clients hold what they would if the buffers came with every message."""
    theta, since = start(), dict.fromkeys(range(CLIENTS), 0 if shared_init else None)
    settings = {"mode": mode, "bits": bits, "keep": 0.02, "shared_init": shared_init}
    less, counted = (make(CLIENTS, **settings, real=real, n_buffers=BUFFERS) for real in (True, False))
    whole, saved = make(CLIENTS, **settings), []
    for version, (clients, change) in enumerate(rounds(1, 40)):
        for number in clients:
            (size, model), (other_size, other), (most, reference) = (
                down.download(number) for down in (less, counted, whole)
            )
            assert size == other_size <= most
            assert torch.equal(model, other)
            assert torch.equal(model[:N], reference[:N])
            assert torch.allclose(model[N:], theta[N:], atol=1e-5)
            newest = version // 5 * 5  # the round in which buffers changed last
            fresh = since[number] is None or since[number] < newest
            saved.append((fresh, most - size))
            since[number] = version
        change[N:] *= (version + 1) % 5 == 0
        theta = theta + change
        for down in (less, counted, whole):
            down.publish(theta, buffers=(version + 1) % 5 == 0)
    if mode == "dense":
        assert not any(difference for _, difference in saved)
        return
    assert max(difference for fresh, difference in saved if not fresh) >= 4 * BUFFERS
    if mode in ("delta", "individual"):  # elsewhere it may be cheaper to send several broadcasts, some without them
        assert {difference for fresh, difference in saved if fresh} == {0}
        assert {difference for fresh, difference in saved if not fresh} <= {0, 4 * BUFFERS}
    again = make(CLIENTS, **settings, real=True, n_buffers=BUFFERS)
    again.load_state_dict(less.state_dict())
    assert [again.download(number)[0] for number in range(CLIENTS)] == [
        counted.download(number)[0] for number in range(CLIENTS)
    ]


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize(("mode", "bits"), [*MODES, ("individual", 8)])
def test_what_follows_the_weights_may_be_longer_than_a_models_buffers(mode, bits, real):
    """Twice as long a vector behind the model's buffers comes whole with every message, at four bytes a number."""
    extra = torch.randn(2 * BUFFERS, generator=torch.Generator().manual_seed(2))
    settings = {"mode": mode, "bits": bits, "keep": 0.02, "real": real}
    alone, longer = make(CLIENTS, **settings), make(CLIENTS, model=torch.cat([start(), extra]), **settings)
    theta, added = start(), 4 * len(extra)
    for clients, change in rounds(16, 12):
        for number in clients:
            (size, model), (longer_size, longer_model) = alone.download(number), longer.download(number)
            assert longer_size >= size + added if size else longer_size == 0
            assert longer_size <= size + added or mode == "sparse"  # of which several may have been missed
            assert longer_size <= wire.dense_bytes(len(longer_model))
            assert torch.equal(longer_model[: LAYOUT.dim], model)
            assert torch.allclose(longer_model[LAYOUT.dim :], extra, rtol=1e-6, atol=1e-6)
        theta, extra = theta + change, extra + 1
        alone.publish(theta)
        longer.publish(torch.cat([theta, extra]))
        assert [size - added for size in longer.sizes[-1:]] == alone.sizes[-1:]
    again = make(CLIENTS, model=torch.cat([start(), extra]), **settings)
    again.load_state_dict(longer.state_dict())
    assert again.download(0)[0] == longer.download(0)[0]


def test_a_copy_that_is_not_the_servers_model_is_found_out():
    down = make(CLIENTS, real=True)
    down.download(0)
    for _, change in rounds(2, 2):
        down.publish(down.model + change)
    down.copies[0] = down.copies[0] + 1
    with pytest.raises(AssertionError, match="client 0"):
        down.download(0)


@pytest.mark.parametrize("shared_init", [False, True])
def test_delta_charges_for_exactly_the_weights_that_changed_since(shared_init):
    down, theta, seen = make(CLIENTS, "delta", shared_init=shared_init), start(), {}
    whole = 32 + 4 * LAYOUT.dim
    versions = [theta]
    for clients, change in rounds(3, 30, share=0.02):
        for number in clients:
            since = seen.get(number, 0 if shared_init else None)
            if since is None:
                expected = whole
            elif since == len(versions) - 1:
                expected = 0
            else:
                missed = list(zip(versions[since:], versions[since + 1 :], strict=False))
                changed = torch.stack([(a != b)[:N] for a, b in missed]).any(0)
                expected = min(
                    message_bytes(changed, versions[-1]),
                    sum(message_bytes((a != b)[:N], b) for a, b in missed),
                )
            assert down.download(number)[0] == expected
            seen[number] = len(versions) - 1
        theta = theta + change
        versions.append(theta)
        down.publish(theta)
        assert torch.equal(down.model, theta)


def test_a_weight_that_changed_and_changed_back_counts_as_changed():
    down = make(1, shared_init=True)
    other = start()
    other[7] += 1
    down.publish(other)
    down.publish(start())
    assert down.changed_at.nonzero().view(-1).tolist() == [7]
    assert down.changed_at[7] == 2


@pytest.mark.parametrize("real", [False, True])
def test_nobody_pays_for_more_than_the_whole_model(real):
    """All weights but one changed, to sizes so different that exponents cannot be packed."""
    down, g = make(1, "delta", shared_init=True, real=real), torch.Generator().manual_seed(0)
    target = start() * 10.0 ** (60 * torch.rand(LAYOUT.dim, generator=g) - 30)
    target[1234] = start()[1234]
    down.publish(target)
    assert message_bytes(down.changed_at > 0, down.model) > 32 + 4 * LAYOUT.dim
    size, model = down.download(0)
    assert size == 32 + 4 * LAYOUT.dim
    assert torch.equal(model, target)


def test_the_weights_changed_are_cheaper_than_many_broadcasts():
    """The same half of the weights changes again and again: each broadcast costs half a model, all of them one."""
    down, change = make(1, "delta", shared_init=True), (torch.arange(LAYOUT.dim) < N / 2).float()
    for _ in range(5):
        down.publish(down.model + change)
    assert down.download(0)[0] == message_bytes(change[:N] > 0, down.model)
    assert 4 * wire.dense_bytes(LAYOUT.dim) < 10 * down.sizes[-1]


@pytest.mark.parametrize("mode", ["sparse", "individual"])
def test_weights_that_did_not_change_are_not_sent(mode):
    down = make(1, mode, bits=32, keep=0.5, shared_init=True)
    other = start()
    other[:10] += 1
    down.publish(other)
    mask = torch.arange(N) < 10
    assert down.download(0)[0] == message_bytes(mask, other - start())


@pytest.mark.parametrize("mode", ["sparse", "individual"])
def test_rounding_has_a_key_of_its_own_every_time(mode, monkeypatch):
    keys = []
    monkeypatch.setattr(downlink, "generator", lambda *key: keys.append(key) or generator(*key))
    down = make(CLIENTS, mode, bits=4, keep=0.5, shared_init=True, seed=11)
    for clients, change in rounds(10, 4):
        down.publish(down.model + change)
        for number in clients:
            down.download(number)
    assert len(keys) == len(set(keys)) == {"sparse": 4, "individual": 12}[mode]
    assert {key[0] for key in keys} == {11}


def test_real_messages_are_kept_only_while_somebody_needs_them():
    down = make(2, "delta", shared_init=True, real=True)
    for version, (_, change) in enumerate(rounds(11, 6)):
        down.download(0)
        if version == 3:
            down.download(1)
        down.publish(down.model + change)
    assert list(down.messages) == [4, 5, 6]


@pytest.mark.parametrize(("mode", "bits"), [("delta", 32), ("sparse", 32), ("sparse", 1)])
def test_a_client_that_never_comes_costs_no_memory(mode, bits):
    """It holds version 0, so that all broadcasts since then are ones that it lacks."""
    down = make(CLIENTS, mode, bits=bits, keep=0.02, shared_init=True, real=True)
    most = 0
    for clients, change in rounds(12, 120):
        for number in set(clients) - {8}:
            down.download(number)
        down.publish(down.model + change)
        state = down.state_dict()
        kept = sum(len(data) for data in state["messages"].values())
        most = max(most, len(down.messages))
        assert kept == sum(down.sizes) <= wire.dense_bytes(LAYOUT.dim)
        assert len(state["sizes"]) == len(state["messages"]) == len(down.sizes)
    assert 1 < most < 120
    assert down.download(8)[0] <= wire.dense_bytes(LAYOUT.dim)
    assert torch.equal(down.copies[8], down.model)


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize(("mode", "bits"), [("delta", 32), ("sparse", 32), ("sparse", 8), ("sparse", 1)])
def test_what_is_forgotten_would_never_have_been_sent(mode, bits, real):
    """Against the sizes of all broadcasts ever, for clients that come every third, 20th and 120th round."""
    down = make(3, mode, bits=bits, keep=0.02, shared_init=True, real=real)
    sizes, changed_at, seen, ways = [], torch.zeros(N), [0, 0, 0], set()
    whole = wire.dense_bytes(LAYOUT.dim)
    for version, (_, change) in enumerate(rounds(13, 121)):
        for number, every in enumerate((3, 20, 120)):
            if version and version % every == 0:
                exact = message_bytes(changed_at > seen[number], down.model)
                by_way = {"missed": sum(sizes[seen[number] :]), "exact": exact, "whole": whole}
                size, _ = down.download(number)
                assert size == min(by_way.values())
                ways.add(min(by_way, key=by_way.get))
                seen[number] = version
        before = down.model
        down.publish(before + change)
        sizes.append(down.sizes[-1])
        changed_at[(down.model != before)[:N]] = version + 1
    assert ways >= ({"exact"} if bits == 32 else {"missed", "exact"})


def test_copies_that_are_the_same_lie_in_memory_once():
    down = make(CLIENTS, shared_init=True, real=True)
    for clients, change in rounds(14, 10):
        for number in clients:
            down.download(number)
        down.publish(down.model + change)
        assert len({copy.data_ptr() for copy in down.copies.values()}) == len(set(down.seen))
        assert all(copy is not down.model for copy in down.copies.values())


def test_it_goes_on_from_its_state_with_the_same_bytes():
    one, other = (make(CLIENTS, "sparse", bits=1, keep=0.02, real=True) for _ in range(2))
    for version, (clients, change) in enumerate(rounds(15, 40)):
        if version % 7 == 0:
            other = make(CLIENTS, "sparse", bits=1, keep=0.02, real=True)
            other.load_state_dict(one.state_dict())
        assert [one.download(number)[0] for number in clients] == [other.download(number)[0] for number in clients]
        one.publish(one.model + change)
        other.publish(other.model + change)
        assert torch.equal(one.model, other.model)


def test_dense_is_the_whole_model_every_time():
    down = make(CLIENTS, "dense")
    for clients, change in rounds(4, 5):
        assert [down.download(number)[0] for number in clients] == [32 + 4 * LAYOUT.dim] * 3
        down.publish(down.model + change)


def test_sparse_charges_for_the_broadcasts_missed_and_never_for_more_than_what_changed():
    down, theta = make(3, "sparse", bits=8, keep=0.02, shared_init=True), start()
    sizes, last_changed = [], torch.zeros(N)
    for _, change in rounds(5, 40):
        before, theta = down.model, theta + change
        down.publish(theta)
        changed = (down.model != before)[:N]
        last_changed[changed] = len(sizes) + 1
        assert 0 < changed.sum() <= round(0.02 * N)
        sizes.append(down.sizes[-1])
        if len(sizes) == 4:
            assert down.download(0)[0] == sum(sizes)
    exact = message_bytes(last_changed > 0, down.model)
    assert down.download(1)[0] == min(sum(sizes), exact)
    assert down.download(0)[0] == min(sum(sizes[4:]), message_bytes(last_changed > 4, down.model))
    assert down.download(0)[0] == 0


def test_what_a_sparse_broadcast_leaves_out_follows_later():
    down = make(1, "sparse", bits=32, keep=0.1)
    (_, change), *_ = rounds(6, 1, share=1.0)
    for left in range(9, -1, -1):
        down.publish(start() + change)
        missing = (down.model - start() - change)[:N].abs() > 1e-6
        assert missing.sum() == left * N // 10
    assert torch.allclose(down.model, start() + change, atol=1e-6)


def test_sparse_sends_the_largest_changes_and_all_buffers():
    down, (_, change) = make(1, "sparse", bits=32, keep=0.1), next(rounds(7, 1, share=1.0))
    down.publish(start() + change)
    moved = (down.model != start())[:N]
    assert change[:N].abs()[moved].min() >= change[:N].abs()[~moved].max()
    assert torch.allclose(down.model[N:], start()[N:] + change[N:])


@pytest.mark.parametrize("shared_init", [False, True])
@pytest.mark.parametrize("real", [False, True])
def test_individual_sends_each_client_the_largest_of_what_it_lacks(shared_init, real):
    """Against one copy a client, by hand: what it holds moves by the largest differences, in float32 exactly."""
    down = make(CLIENTS, "individual", bits=32, keep=0.02, shared_init=shared_init, real=real)
    held, theta, last = {number: start() for number in range(CLIENTS)} if shared_init else {}, start(), {}
    for version, (clients, change) in enumerate(rounds(8, 20)):
        for number in clients:
            size, model = down.download(number)
            if number not in held:
                held[number], expected = theta, 32 + 4 * LAYOUT.dim
            elif last.get(number, 0) == version:
                expected = 0
            else:
                lacks = theta - held[number]
                kept = torch.zeros(N, dtype=torch.bool)
                kept[lacks[:N].abs().topk(80).indices] = True
                kept &= lacks[:N] != 0
                expected = message_bytes(kept, lacks)
                held[number] = held[number] + torch.cat([lacks[:N] * kept, lacks[N:]])
            assert size == expected
            assert torch.equal(model, held[number])
            last[number] = version
        theta = theta + change
        down.publish(theta)
        assert down.model is theta
    missing = {float((held[number] - theta)[:N].norm()) for number in held}
    assert len(missing) > 3  # they do not hold the same


def test_individual_clients_arrive_when_the_model_rests():
    down = make(1, "individual", bits=8, keep=0.1, shared_init=True)
    (_, change), *_ = rounds(9, 1, share=1.0)
    apart = []
    for _ in range(25):
        down.publish(start() + change)
        apart.append(float((down.download(0)[1] - down.model).norm()))
    assert apart[-1] < 1e-3 * apart[0]
