"""FluxFlow's means and our sums are the same loss up to one factor, and so is its gradient."""

import pytest
import torch
import torch.nn.functional as F

from tests.pipeline.files import PipelinePlace
from wfimagevae.model.losses import LossConfig, LPIPSWithDiscriminator2D
from wfimagevae.model.vae.modeling_wfvae2_image import WFVAE2ImageModel
from wfimagevae.pipeline.flags import parse_flags, step_flags
from wfimagevae.pipeline.loading import load_pipeline
from wfimagevae.pipeline.units import Units

SIZE, CHANNELS = 32, 4
UNITS = Units(3 * SIZE**2, CHANNELS * (SIZE // 8) ** 2)
GIVEN = {"kl_beta": 3e-2, "lambda_adv": 0.7, "mse_weight": 0.2, "kl_free_bits": 0.01}
GIVEN |= {"r1_gamma": 5.0, "r1_interval": 4, "initial_clipping_norm": 1.5}


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Of the training that a step with these weights means."""
    place = PipelinePlace(tmp_path_factory.mktemp("units"))
    content = place.content("out")
    step = {"name": "vae", "steps": 1, "train_vae": True, "gan_training": True} | GIVEN
    step["options"] = {"disc_start": 0, "wavelet_loss": False}
    content["training"]["pipeline"]["steps"] = [step]
    loaded = load_pipeline(place.write(content))
    flags, _ = step_flags(loaded.steps[0], loaded.content, loaded.document, loaded.parsers, UNITS)
    return parse_flags(loaded.parsers["vae"], flags)


def test_the_gradient_is_that_of_the_means(options):
    torch.manual_seed(0)
    config = {"latent_dim": CHANNELS, "base_channels": [8, 8, 16], "encoder_energy_flow_size": 8}
    config |= {"decoder_base_channels": [8, 8, 16], "decoder_energy_flow_size": 8}
    vae = WFVAE2ImageModel(**config).double()
    names = ("rec_weight", "perceptual_weight", "mse_weight", "kl_weight", "kl_free_bits")
    names += ("disc_weight", "adaptive_weight", "disc_start", "disc_num_layers")
    loss = LPIPSWithDiscriminator2D(
        LossConfig(**{n: options[n] for n in names}, wavelet_weight=0.0)
    ).double()
    images = torch.rand(2, 3, SIZE, SIZE, dtype=torch.float64) * 2 - 1
    output = vae(images, noise=torch.randn(2, CHANNELS, 4, 4, dtype=torch.float64))
    ours, _ = loss.generator_loss(images, output, vae.last_layer, step=0)
    parameters = [p for p in vae.parameters() if p.requires_grad]
    gradient = torch.autograd.grad(ours, parameters, retain_graph=True, allow_unused=True)

    posterior = output.latent_dist
    kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar)
    means = F.l1_loss(output.sample, images) + 0.2 * F.mse_loss(output.sample, images)
    means = (
        means + 3e-2 * kl.clamp_min(0.01).mean() - 0.7 * loss.discriminator(output.sample).mean()
    )
    expected = torch.autograd.grad(means, parameters, allow_unused=True)
    compared = [(a, b) for a, b in zip(gradient, expected, strict=True) if b is not None]
    assert len(compared) > 20
    for ours_, theirs in compared:
        torch.testing.assert_close(ours_, theirs, rtol=1e-6, atol=1e-12)


def test_regulariser_and_clipping_are_converted_too(options):
    # Every fourth update counts four times here, once there.
    assert options["r1_weight"] * options["r1_interval"] == 5.0
    assert options["clip_grad_norm"] == 1.5 * UNITS.pixels
    assert not options["adaptive_weight"]
