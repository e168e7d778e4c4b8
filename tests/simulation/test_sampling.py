"""Who takes part in a round."""

from fedmerge.simulation.sampling import sample_clients


def test_clients_are_sampled_by_round_and_seed_and_nothing_else():
    drawn = [sample_clients(20, 0.2, 0, r) for r in range(1, 101)]
    assert all(len(set(numbers)) == 4 and numbers == sorted(numbers) for numbers in drawn)
    assert set().union(*drawn) == set(range(20))
    assert drawn == [sample_clients(20, 0.2, 0, r) for r in range(1, 101)]
    assert drawn != [sample_clients(20, 0.2, 1, r) for r in range(1, 101)]
    assert sample_clients(20, 0.001, 0, 1) == sample_clients(20, 0.05, 0, 1)
    assert sample_clients(5, 1.0, 0, 1) == [0, 1, 2, 3, 4]
    assert len(sample_clients(10, 0.25, 0, 1)) == len(sample_clients(10, 0.35, 0, 1)) - 1
