"""How the clients of a round are shared out among processes."""

from hypothesis import given
from hypothesis import strategies as st

from fedmerge.simulation import distributed


@given(loads=st.lists(st.integers(1, 50), max_size=8), n=st.integers(1, 5))
def test_shares_are_consecutive_and_none_is_larger_than_it_must_be(loads, n):
    plan = distributed.shares(loads, n)
    assert len(plan) == n
    assert [i for begin, end in plan for i in range(begin, end)] == list(range(len(loads)))

    def least(i, parts):
        """The largest sum at best, of loads[i:] in so many parts."""
        if parts == 1:
            return sum(loads[i:])
        return min(max(sum(loads[i:j]), least(j, parts - 1)) for j in range(i, len(loads) + 1))

    assert max(sum(loads[begin:end]) for begin, end in plan) == least(0, n)
