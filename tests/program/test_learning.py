"""Every algorithm learns the digits."""

import pytest

import fedalg
from fedmerge import wire
from fedmerge.registry import ALGORITHMS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("settings", [{}, {"localiser": "learned", "graft_epochs": 3, "mask_scope": "global"}], ids=str)
def test_las_learned_or_not_trains(experiment, settings):
    run = experiment(algorithm="las", n_epochs=8, n_client_epochs=5, quiet=True, **settings)
    fedalg.run_rounds(run)
    assert run.history.rows[-1]["test_accs"] > 0.9
    assert run.history.rows[-1]["kept_share"] < 0.5


def test_the_compact_preset_learns_the_digits_with_a_hundredth_of_the_bytes_up(experiment):
    settings = {"n_epochs": 16, "n_client_epochs": 5, "batch_size": 16, "lr": 0.05, "quiet": True, "eval_every": 16}
    run = experiment(algorithm="las", preset="compact", **settings)
    fedalg.run_rounds(run)
    dense = sum(row["clients"] for row in run.history.rows) * wire.dense_bytes(run.model.layout.dim)
    assert run.history.rows[-1]["test_accs"] >= 0.94
    assert dense > 100 * run.history.rows[-1]["bytes_up_total"]
    assert dense > 25 * run.history.rows[-1]["bytes_down_total"]


OF_ITS_OWN = {  # settings that an algorithm needs, or that a small network does
    "centralised": {"lr": 0.02, "n_epochs": 1},  # so many steps on end diverge with 0.05
    "soups": {"n_verts": 2, "soup_epochs": 5},
    "diwa": {"n_verts": 2, "soup_epochs": 5},
    "lss": {"lr": 2e-3},  # of Adam
    "fedrep": {"n_epochs": 14},  # its heads are fitted first
    "fedavgm": {"momentum": 0.0},  # the server's is enough
    "fedadagrad": {"server_lr": 0.2},
    "signsgd": {"sign_step": 0.02},
    "stc": {"sparsity": 0.1, "down_sparsity": 0.1},
    "topk": {"sparsity": 0.05},
    "ssfl": {"ssfl_keep": 0.2},
}


@pytest.mark.parametrize("algorithm", sorted(set(ALGORITHMS) - {"apfl", "ditto"}))  # theirs is FedAvg's
def test_every_algorithm_learns_the_digits(experiment, small_networks, algorithm):
    """The quick version of `make run`, on a small network: IID, the same settings, 7 of its 30 rounds."""
    settings = {"n_epochs": 7, "n_client_epochs": 5, "batch_size": 16, "lr": 0.05, "quiet": True, "eval_every": 7}
    run = experiment(algorithm=algorithm, model_name="small", **settings | OF_ITS_OWN.get(algorithm, {}))
    fedalg.run_rounds(run)
    assert run.history.rows[-1]["test_accs"] >= 0.86
