"""Weight standardisation: by hand, what it does not change, and what it leaves behind."""

import pytest
import torch
import torch.nn.functional as F
from conftest import train_round
from torch import nn

import fedmerge
from fedmerge.errors import InputError
from fedmerge.networks.standardised import StandardisedConv2d, make_plain, standardise, standardised
from fedmerge.networks.trainable import choose_trained

FEW = {"model_name": "small", "norm": "group", "local_steps": 2}


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.GroupNorm(2, 4)
    )


def test_weights_of_an_output_are_standardised_by_hand():
    """1 3 have the mean 2 and the deviation (of a sample) sqrt(2); 5 5 have none, and become 0."""
    weight = torch.tensor([[1.0, 3], [5, 5]]).view(2, 1, 1, 2)
    expected = torch.tensor([[-1, 1], [0, 0]]) / 2**0.5
    torch.testing.assert_close(standardised(weight).view(2, 2), expected, rtol=1e-4, atol=1e-6)


def test_a_convolution_works_with_standardised_weights_and_learns_its_own():
    module, x = net(), torch.randn(3, 2, 8, 8)
    weight = module[0].weight.detach().clone()
    standardise(module)
    torch.testing.assert_close(module[0](x), F.conv2d(x, standardised(weight), module[0].bias))
    assert torch.equal(module[0].weight, weight)
    before = module(x)
    with torch.no_grad():  # what it does hangs neither on the size of an output's weights nor on their mean
        module[0].weight[1] = 3 * module[0].weight[1] + 0.5
    torch.testing.assert_close(module(x), before, rtol=1e-3, atol=1e-4)
    (module(x) * torch.arange(16.0).view(4, 4)).sum().backward()
    gradient = module[0].weight.grad
    assert gradient.abs().max() > 1e-3
    assert (gradient.sum((1, 2, 3)).abs() < 1e-3).all()  # so that they are not learnt


def test_what_is_made_plain_does_the_same_and_standardising_it_again_changes_nothing():
    module, x = net(), torch.randn(3, 2, 8, 8)
    standardise(module)
    expected = module(x)
    make_plain(module)
    assert [type(layer) for layer in module[::3]] == [nn.Conv2d, nn.Conv2d]
    torch.testing.assert_close(module(x), expected)
    standardise(module)
    assert isinstance(module[0], StandardisedConv2d)
    torch.testing.assert_close(module(x), expected, rtol=1e-3, atol=1e-4)


def test_adapters_are_standardised_with_the_weight_beside_them():
    module, x = nn.Sequential(*net(), nn.Flatten(), nn.Linear(4 * 16, 3)), torch.randn(3, 2, 8, 8)
    standardise(module)
    choose_trained(module, "lora", rank=2)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith(".b"):
                parameter.normal_()
    weight = module[0].weight.detach()
    torch.testing.assert_close(module[0](x), F.conv2d(x, standardised(weight), module[0].bias))


@pytest.mark.usefixtures("small_networks")
@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_saved_weights_are_of_a_plain_network(experiment, trainable):
    run = experiment(weight_standardisation=True, trainable=trainable, **FEW)
    train_round(run, 1)
    plain, x = run.model.plain_copy(), run.splits.normalise(run.splits.val.images[:20])
    assert type(plain[0]) is nn.Conv2d
    run.model.module.eval()
    torch.testing.assert_close(plain(x), run.model.module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("small_networks")
def test_a_run_learns_by_it_and_goes_on_from_its_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"dataset": "DIGITS", "n_epochs": 2, "quiet": True, "weight_standardisation": True, **FEW}
    first = fedmerge.run(**settings, save_weights="first.pt")
    assert "weight_standardisation=True" in first.name
    again = fedmerge.run(**settings, init_weights="first.pt", lr=1e-6, seed=0, out="again")
    assert again.history.test_losses.iloc[0] == pytest.approx(first.history.test_losses.iloc[-1], rel=1e-3)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (nn.Sequential(nn.Linear(2, 2)), "the network has no convolution"),
        (nn.Sequential(nn.Conv2d(1, 3, 1)), "the network has no convolution"),  # a weight alone has no deviation
        (nn.Sequential(nn.Conv1d(2, 2, 3)), "the layer 0 is no plain convolution"),
        (nn.Sequential(nn.Conv2d(2, 2, 3), nn.ConvTranspose2d(2, 2, 3)), "the layer 1 is no plain convolution"),
    ],
)
def test_what_has_no_plain_convolutions_is_refused(module, said):
    with pytest.raises(InputError, match=said):
        standardise(module)


def test_it_needs_normalisation_and_no_published_weights(experiment):
    with pytest.raises(InputError, match="--weight_standardisation needs normalisation layers"):
        experiment(weight_standardisation=True, model_name="cnn", norm="none")
    with pytest.raises(InputError, match="--weight_standardisation changes what published weights do"):
        experiment(weight_standardisation=True, model_name="resnet18", pretrained=True)
