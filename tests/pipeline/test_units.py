"""FluxFlow's means and our sums are the same loss up to one factor, and so is its gradient."""

import pytest
import torch
import torch.nn.functional as F

from tests.pipeline.files import TINY_VAE, changed, options_of
from wfimagevae.model.losses import LPIPSWithDiscriminator2D
from wfimagevae.model.vae.modeling_wfvae2_image import WFVAE2ImageModel
from wfimagevae.pipeline.checks import load_pipeline

SIZE, CHANNELS = 32, 4
GIVEN = {"kl_beta": 3e-2, "lambda_adv": 0.7, "mse_weight": 0.2, "kl_free_bits": 0.01}
GIVEN |= {"r1_gamma": 5.0, "r1_interval": 4, "initial_clipping_norm": 1.5}


@pytest.fixture(scope="module")
def options(place):
    """Of the training that a step with these weights means."""
    step = {"name": "vae", "steps": 1, "train_vae": True, "gan_training": True} | GIVEN
    step["options"] = {"disc_start": 0, "wavelet_loss": False}
    content = changed(place.content("units"), {"training.pipeline.steps": [step]})
    return options_of(load_pipeline(place.write(content)), latents=CHANNELS * (SIZE // 8) ** 2)


def test_the_gradient_is_that_of_the_means(options):
    torch.manual_seed(0)
    vae = WFVAE2ImageModel(**TINY_VAE).double()
    loss = LPIPSWithDiscriminator2D(options.changed(wavelet_weight=0.0)).double()
    images = torch.rand(2, 3, SIZE, SIZE, dtype=torch.float64) * 2 - 1
    output = vae(images, noise=torch.randn(2, CHANNELS, 4, 4, dtype=torch.float64))
    ours, _ = loss.generator_loss(images, output, vae.last_layer, step=0)
    parameters = [p for p in vae.parameters() if p.requires_grad]
    gradient = torch.autograd.grad(ours, parameters, retain_graph=True, allow_unused=True)

    posterior = output.latent_dist
    kl = 0.5 * (posterior.mean.square() + posterior.std.square() - 1 - posterior.logvar)
    means = F.l1_loss(output.sample, images) + 0.2 * F.mse_loss(output.sample, images)
    means = (
        means + 3e-2 * kl.clamp_min(0.01).mean() - 0.7 * loss.discriminator(output.sample).mean()
    )
    expected = torch.autograd.grad(means, parameters, allow_unused=True)
    compared = [(a, b) for a, b in zip(gradient, expected, strict=True) if b is not None]
    assert len(compared) > 20
    for ours_, theirs in compared:
        torch.testing.assert_close(ours_, theirs, rtol=1e-6, atol=1e-12)


def test_the_discriminators_gradient_is_that_of_the_means(options):
    """Over four updates, of which one has the gradient penalty: there on top, here for all four."""
    torch.manual_seed(0)
    config = options.changed(perceptual_weight=0.0)
    loss = LPIPSWithDiscriminator2D(config).double()
    critic = loss.discriminator
    real, fake = (torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64) for _ in range(2))
    parameters = list(critic.parameters())
    updates = [loss.discriminator_loss(real, fake, update)[0] for update in range(4)]
    ours = torch.autograd.grad(sum(updates), parameters)

    seen = real.clone().requires_grad_()
    slope = torch.autograd.grad(critic(seen).mean((1, 2, 3)).sum(), seen, create_graph=True)[0]
    penalty = slope.square().sum((1, 2, 3)).mean()
    hinge = 0.5 * (F.relu(1 - critic(real)).mean() + F.relu(1 + critic(fake)).mean())
    theirs = torch.autograd.grad(4 * hinge + 5.0 / 2 * penalty, parameters)
    for ours_, theirs_ in zip(ours, theirs, strict=True):
        torch.testing.assert_close(ours_, theirs_, rtol=1e-6, atol=1e-12)


def test_clipping_allows_the_same_gradients(options):
    # Ours is of the loss in sums over an image, 3 * 32 * 32 times theirs.
    assert options.clip_grad_norm == pytest.approx(1.5 * 3072)
    assert not options.adaptive_weight
