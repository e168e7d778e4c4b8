"""Keyed randomness."""

from fedmerge.randomness import key_seed


def test_keys_give_independent_seeds_that_never_change():
    keys = [(seed, what, i) for seed in (0, 1) for what in ("batches", "clients") for i in range(50)]
    assert len({key_seed(*key) for key in keys}) == len(keys)
    assert key_seed(0, "clients", 1) == 2815739281608643980  # a change here changes every published result
