"""PatchGAN: spectral norm against the singular value decomposition, names, freezing."""

import pytest
import torch

from wfimagevae.model.losses.discriminator import NLayerDiscriminator, SpectralNormConv2d, frozen


def test_spectral_norm_makes_the_largest_singular_value_one():
    torch.manual_seed(0)
    layer = SpectralNormConv2d(3, 8, stride=2)
    layer.power_iteration(200)
    x = torch.randn(1, 3, 8, 8)
    largest = torch.linalg.svdvals(layer.weight_orig.flatten(1))[0]
    want = torch.nn.functional.conv2d(x, layer.weight_orig / largest, layer.bias, 2, 1)
    torch.testing.assert_close(layer(x), want, rtol=1e-4, atol=1e-5)


def test_forward_does_not_move_the_estimate_and_power_iteration_does():
    torch.manual_seed(0)
    network = NLayerDiscriminator(num_layers=2, base_channels=8)
    before = network.state_dict()["main.0.weight_u"].clone()
    network.train()(torch.randn(1, 3, 32, 32))
    assert torch.equal(network.main[0].weight_u, before)
    with torch.no_grad():
        network.main[0].weight_orig.normal_()
    network.power_iteration()
    assert not torch.equal(network.main[0].weight_u, before)


def test_fresh_logits_are_small_and_names_are_those_of_checkpoints():
    torch.manual_seed(0)
    network = NLayerDiscriminator(num_layers=3)
    assert network(torch.rand(1, 3, 128, 128) * 2 - 1).abs().max() < 10
    names = network.state_dict().keys()
    assert {name.split(".")[1] for name in names} == {"0", "2", "5", "8", "11"}
    suffixes = {name.split(".")[2] for name in names}
    assert suffixes == {"weight_orig", "weight_u", "weight_v", "bias"}


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4])
def test_an_image_of_the_least_size_leaves_one_logit(num_layers):
    network = NLayerDiscriminator(num_layers, base_channels=2)
    size = network.min_size
    assert network(torch.zeros(1, 3, size, size + 1)).shape == (1, 1, 1, 1)
    with pytest.raises(RuntimeError, match="size"):
        network(torch.zeros(1, 3, size, size - 1))


def test_frozen_lets_gradients_through_to_the_input_only():
    network = NLayerDiscriminator(num_layers=1, base_channels=4)
    x = torch.randn(1, 3, 16, 16, requires_grad=True)
    with frozen(network):
        score = network(x).mean()
    score.backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
