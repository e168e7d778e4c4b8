"""BatchNorm's statistics that are sent in some rounds only: training makes no use of them."""

import pytest
import torch
from conftest import train_rounds

from fedmerge.errors import InputError
from fedmerge.networks import FlatModel
from fedmerge.simulation.experiment import check_statistics

FIVE = {"norm": "batch", "n_epochs": 5, "n_clients": 4, "participation": 0.5, "local_steps": 3, "eval_every": 3}
COMPACT = {"algorithm": "las", "preset": "compact"}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, COMPACT, COMPACT | {"downlink": "delta"}, {"algorithm": "scaffold"}], ids=str)
@pytest.mark.parametrize("wire", ["size", "real"])
def test_the_weights_are_the_same_and_the_bytes_fewer(experiment, settings, wire):
    always, third = (experiment(**FIVE, **settings, wire=wire, bn_every=n) for n in (1, 3))
    layout = always.server.layout
    n, statistics = layout.n_trainable, layout.dim - layout.n_trainable
    start = third.server.theta[n:].clone()
    for round in range(1, 6):
        rows = [train_rounds(run).history.rows[-1] for run in (always, third)]
        assert torch.equal(always.server.theta[:n], third.server.theta[:n])
        sent = round in (3, 5)  # the last has them, too
        assert rows[0]["bytes_up"] - rows[1]["bytes_up"] == (0 if sent else 2 * 4 * statistics)
        assert torch.equal(third.server.theta[n:], start) == (round < 3)
    assert rows[1]["bytes_down_total"] < rows[0]["bytes_down_total"]


def test_what_the_server_has_of_them_is_the_mean_of_what_clients_measured(experiment):
    """By hand: a client's own statistics, of the start that it has received, averaged over the clients."""
    run = experiment(**FIVE | {"participation": 1, "n_epochs": 1}, bn_every=3)
    n, measured, train = run.server.layout.n_trainable, [], run.server.algorithm.train
    run.server.algorithm.train = lambda received, client: (
        train(received, client),
        measured.append((client.n_samples, client.model.vector[n:].clone())),
    )[0]
    train_rounds(run)
    total = sum(samples for samples, _ in measured)
    mean = sum(samples / total * statistics for samples, statistics in measured)
    assert torch.allclose(run.server.theta[n:], mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 4])
def test_they_are_the_means_over_the_steps_wherever_they_began(experiment, steps):
    """With a learning rate that changes nothing: what torch's BatchNorm makes of momentum None."""
    run = experiment(**FIVE | {"local_steps": steps, "lr": 1e-30, "dirichlet": 0.3}, bn_every=3)
    n, found, start = run.server.layout.n_trainable, [], run.server.theta
    for shift in (0, 7):
        client = run.clients.trainer.client(0, 1)
        found.append(client.train(torch.cat([start[:n], start[n:] + shift]))[n:].clone())
    assert torch.equal(*found)
    momenta = {m.momentum for m in client.model.module.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert momenta == {0.1}  # again
    client.model.load(start)
    for m in client.model.module.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.momentum = None
            m.num_batches_tracked.zero_()
    for x, _ in client.batches(client.settings.epochs, client.rng("batches"), n_steps=steps):
        client.forward(x)
    assert torch.allclose(found[0], client.model.vector[n:], rtol=1e-5, atol=1e-6)


def test_algorithm_1_of_lss_averages_what_was_measured_not_what_was_received(experiment):
    pool = {"local": "lss", "n_verts": 2, "soup_epochs": 1, "n_client_epochs": 5}
    run = experiment(**{k: v for k, v in (FIVE | pool).items() if k != "n_client_epochs"}, bn_every=3)
    n, start = run.server.layout.n_trainable, run.server.theta
    ends = []
    for shift in (0, 7):
        client = run.clients.trainer.client(0, 1)
        ends.append(client.train(torch.cat([start[:n], start[n:] + shift]))[n:].clone())
    assert torch.equal(*ends)


def test_where_nobodys_statistics_arrive_the_run_says_so(experiment, capsys):
    run = experiment(**FIVE, bn_every=3, dropout=0.999)
    said = []
    for _ in range(5):
        assert train_rounds(run).history.rows[-1]["clients"] == 0
        said.append(capsys.readouterr().err)
    expected = "warning: round 3: nobody's statistics arrived: those of BatchNorm are of an earlier round\n"
    assert said == ["", "", expected, "", expected.replace("3", "5")]


def test_a_network_whose_buffers_training_may_use_is_refused():
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    check_statistics(FlatModel(module), "mine")
    module[0].register_buffer("scale", torch.ones(7))
    with pytest.raises(InputError, match="mine has 7 buffers besides BatchNorm's statistics"):
        check_statistics(FlatModel(module), "mine")
    torch.nn.utils.parametrizations.spectral_norm(module[0])  # of two vectors that each step uses and changes
    with pytest.raises(InputError, match="mine has 14 buffers besides BatchNorm's statistics"):
        check_statistics(FlatModel(module), "mine")
    renorm = type("BatchRenorm", (torch.nn.LayerNorm,), {})(3)  # whose averages are used in training
    renorm.register_buffer("running_mean", torch.zeros(3))
    with pytest.raises(InputError, match="mine has 3 buffers besides"):
        check_statistics(FlatModel(torch.nn.Sequential(renorm, torch.nn.Linear(3, 2))), "mine")
    with pytest.raises(InputError, match="no effect with --model_name mine, which has no BatchNorm"):
        check_statistics(FlatModel(torch.nn.Linear(4, 3)), "mine")
