"""What crosses the wire of a vector, by hand."""

import torch

from fedmerge.client_update import ClientUpdate
from fedmerge.networks import Layout
from fedmerge.wire import Crossing, pack

LAYOUT = Layout(names=("a", "b"), sizes=(3, 2), n_trainable=5, dim=7)
START = torch.tensor([10.0, 11, 12, 13, 14, 15, 16])


def test_what_is_the_clients_own_is_left_out_and_replaced_by_hand():
    crossing = Crossing(torch.tensor([1, 4, 5]), LAYOUT, START)
    assert (crossing.n_weights, crossing.n_buffers) == (3, 1)
    vector = torch.arange(9.0)  # two numbers that an algorithm sends besides
    assert crossing.out(vector).tolist() == [0, 2, 3, 6, 7, 8]
    assert crossing.whole(crossing.out(vector)).tolist() == [0, 11, 2, 3, 14, 15, 6, 7, 8]
    mask = torch.tensor([True, True, False, True, True])
    sent = crossing.update_out(ClientUpdate(vector, mask), 5)
    assert sent.mask.tolist() == [True, False, True]
    row, arrived = crossing.unpack(pack(sent, crossing.n_weights, 32), torch.full((9,), 99.0), 5)
    assert row.tolist() == [0, 0, 0, 3, 0, 0, 6, 7, 8]
    assert arrived.tolist() == [True, False, False, True, False]
    row, arrived = crossing.unpack(pack(ClientUpdate(sent.delta), 3, 32), torch.full((9,), 99.0), 5)
    assert row.tolist() == [0, 0, 2, 3, 0, 0, 6, 7, 8]
    assert arrived is None


def test_where_nothing_is_nothing_is_copied():
    for own in (None, torch.arange(0)):
        crossing, update = Crossing(own, LAYOUT, START), ClientUpdate(START)
        assert crossing.out(START) is START
        assert crossing.whole(START) is START
        assert crossing.update_out(update, 5) is update
        assert (crossing.n_weights, crossing.n_buffers) == (5, 2)
