"""Terms that are off by default: what their weights multiply, what they give a gradient to."""

import math

import pytest
import torch

from tests.model.losses.test_perceptual_loss import (
    generator_loss,
    random_case,
    small_loss,
    vae_output,
)
from wfimagevae.model.losses import perceptual_loss as module
from wfimagevae.model.losses.discriminator import NLayerDiscriminator, gradient_penalty
from wfimagevae.model.losses.image_statistics import (
    color_distance,
    contrast_distance,
    histogram_distance,
)
from wfimagevae.model.losses.mmd import latent_mmd

NOTHING = {"kl_weight": 0, "wavelet_weight": 0, "disc_weight": 0}


def latent_case():
    """A case whose latents want a gradient."""
    case = random_case(torch.float64)
    case[1]["moments"].requires_grad_()
    return case


def latent_loss(case, step=0, **options):
    """The generator's loss, its logs, and its gradient in the moments, of such a case."""
    value, logs = generator_loss(small_loss(**NOTHING | options), case, step)
    return value, logs, torch.autograd.grad(value, case[1]["moments"])[0]


@pytest.mark.parametrize(
    ("name", "distance"),
    [
        ("mse", lambda target, image: (target - image).square()),
        ("color", color_distance),
        ("histogram", histogram_distance),
        ("contrast", contrast_distance),
    ],
)
def test_image_terms_add_their_weighted_mean_over_pixel_values(name, distance):
    images, tensors, last_layer = random_case(torch.float64)
    loss = small_loss(**NOTHING, **{f"{name}_weight": 0.7})
    value, logs = generator_loss(loss, (images, tensors, last_layer))
    sample = vae_output(tensors, last_layer).sample
    term = distance(images, sample).mean()
    want = (images - sample).abs().mean() + 0.7 * term
    torch.testing.assert_close(value, want, check_dtype=False)
    grads = [torch.autograd.grad(loss, last_layer) for loss in (value, want)]
    torch.testing.assert_close(*grads)
    torch.testing.assert_close(logs[f"train/{name}_loss_per_pixel"], term.detach())
    torch.testing.assert_close(logs[f"train/{name}_loss"], term.detach() * images[0].numel())


def test_image_terms_alone_reach_the_vae():
    """Without any reconstruction weight."""
    weights = {f"{name}_weight": 1.0 for name in ("color", "histogram", "contrast")}
    loss = small_loss(**NOTHING, **weights, rec_weight=0, adaptive_weight=False)
    images, tensors, last_layer = random_case()
    value, _ = generator_loss(loss, (images, tensors, last_layer))
    assert torch.autograd.grad(value, last_layer)[0].abs().max() > 0
    # The squared error suffices for the adaptive weight.
    loss = small_loss(kl_weight=0, wavelet_weight=0, rec_weight=0, mse_weight=1.0)
    images, tensors, last_layer = random_case()
    assert generator_loss(loss, (images, tensors, last_layer))[1]["train/d_weight"] > 0


def test_mmd_of_the_decoded_latent_counts_once_per_pixel_value():
    case = latent_case()
    _, logs, gradient = latent_loss(case, step=5, mmd_weight=0.3)
    mmd = latent_mmd(vae_output(case[1], case[2]).latent_dist.mean, 5, lambda rows: rows)
    torch.testing.assert_close(logs["train/mmd_loss_per_pixel"], mmd.detach())
    (want,) = torch.autograd.grad(0.3 * mmd, case[1]["moments"])
    torch.testing.assert_close(gradient, want)


def test_kl_weight_warms_up_as_half_a_cosine():
    case, grads, third = latent_case(), [], 0.5 - 0.5 * math.cos(0.3 * math.pi)
    for step, share in ((0, 0), (3, third), (5, 0.5), (10, 1), (1000, 1)):
        _, logs, _ = latent_loss(case, step, kl_weight=0.2, kl_warmup_steps=10)
        assert logs["train/kl_weight"] == pytest.approx(0.2 * share)
    for options, step in (({"kl_warmup_steps": 10}, 3), ({}, 3), ({"kl_warmup_steps": 10}, 0)):
        _, logs, gradient = latent_loss(case, step, kl_weight=0.2, **options)
        grads.append(gradient)
        assert ("train/kl_weight" in logs) == bool(options)
    torch.testing.assert_close(grads[0], third * grads[1])
    assert grads[2].abs().max() == 0
    assert logs["train/kl_weight"] == 0 and logs["train/kl_loss"] > 0


def test_free_bits_leave_values_below_them_alone():
    case = latent_case()
    value, logs, got = latent_loss(case, kl_weight=0.2, kl_free_bits=0.5)
    other, other_logs, want = latent_loss(case, kl_weight=0.2)
    values = vae_output(case[1], case[2]).latent_dist.kl_of_values().detach()
    is_free = (values < 0.5).repeat(1, 2, 1, 1)  # means, then log-variances
    assert 0 < is_free.double().mean() < 1
    assert got[is_free].abs().max() == 0
    torch.testing.assert_close(got[~is_free], want[~is_free])
    assert logs["train/kl_free_share"] == is_free.double().mean()
    assert logs["train/kl_loss"] == other_logs["train/kl_loss"]  # all of it, for people
    excess = 0.2 * (0.5 - values[values < 0.5]).sum() / len(values) / case[0][0].numel()
    torch.testing.assert_close(value - other, excess)
    _, logs, gradient = latent_loss(case, kl_weight=0.2, kl_free_bits=1024)  # above everything
    assert logs["train/kl_free_share"] == 1 and gradient.abs().max() == 0


def test_terms_of_weight_zero_are_not_computed(monkeypatch):
    def computed(*args):
        raise AssertionError("computed")

    monkeypatch.setattr(module, "latent_mmd", computed)
    monkeypatch.setattr(module, "gradient_penalty", computed)
    monkeypatch.setattr(module, "_STATISTICS", dict.fromkeys(module._STATISTICS, computed))
    images, tensors, last_layer = random_case()
    loss = small_loss()
    _, logs = generator_loss(loss, (images, tensors, last_layer))
    sample = vae_output(tensors, last_layer).sample
    _, other = loss.discriminator_loss(images, sample)
    new = ("mse", "mmd", "color", "histogram", "contrast", "r1", "kl_weight", "kl_free")
    assert not [name for name in logs | other if name.split("/")[1].startswith(new)]


def test_r1_is_the_squared_slope_of_the_mean_logit_per_image():
    torch.manual_seed(0)
    discriminator = NLayerDiscriminator(2, 8).double()
    images = torch.rand(3, 3, 32, 32, dtype=torch.float64) * 2 - 1
    want = []
    for image in images:  # one by one: no image sees another
        x = image[None].clone().requires_grad_()
        (slope,) = torch.autograd.grad(discriminator(x).mean(), x)
        want.append(slope.square().sum())
    torch.testing.assert_close(gradient_penalty(discriminator, images), torch.stack(want).mean())


def test_r1_has_the_gradient_of_differences_through_spectral_norm():
    torch.manual_seed(0)
    discriminator = NLayerDiscriminator(1, 4).double()
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1
    gradient_penalty(discriminator, images).backward()
    for layer in (discriminator.main[0], discriminator.main[2]):
        weight, eps = layer.weight_orig, 1e-6
        step = torch.randn_like(weight)
        ends = []
        for sign in (1, -1):
            weight.data += sign * eps * step
            ends.append(gradient_penalty(discriminator, images).item())
            weight.data -= sign * eps * step
        slope = (ends[0] - ends[1]) / (2 * eps)
        assert (weight.grad * step).sum().item() == pytest.approx(slope, rel=1e-4)


def test_r1_is_as_strong_on_average_at_any_interval():
    images, tensors, last_layer = random_case(torch.float64)
    sample = vae_output(tensors, last_layer).sample
    plain = small_loss().double()
    base = plain.discriminator_loss(images, sample)[0]
    penalty = gradient_penalty(plain.discriminator, images)
    for interval in (1, 4):
        loss = small_loss(r1_weight=3.0, r1_interval=interval).double()
        extra = [loss.discriminator_loss(images, sample, n)[0] - base for n in range(8)]
        torch.testing.assert_close(sum(extra) / 8, 1.5 * penalty)
        assert sum(value.abs() > 1e-12 for value in extra) == 8 // interval
        logs = loss.discriminator_loss(images, sample, 0)[1]
        torch.testing.assert_close(logs["train/r1_penalty"], penalty.detach())
        torch.testing.assert_close(logs["train/disc_loss"], base.detach())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_r1_under_autocast_is_that_of_float32(dtype):
    torch.manual_seed(0)
    discriminator, images = NLayerDiscriminator(2, 8), torch.rand(2, 3, 64, 64) * 2 - 1
    grads = []
    for enabled in (False, True):
        discriminator.zero_grad()
        with torch.autocast("cpu", dtype, enabled=enabled):
            gradient_penalty(discriminator, images).backward()
        grads.append(discriminator.main[0].weight_orig.grad.clone())
    assert grads[0].abs().max() > 0
    torch.testing.assert_close(*grads)


def test_noise_is_on_what_the_discriminator_sees_and_on_nothing_else():
    images, tensors, last_layer = random_case(torch.float64)
    loss = small_loss(kl_weight=0, wavelet_weight=0, adaptive_weight=False).double()
    output = vae_output(tensors, last_layer)
    noise = [torch.randn(images.shape, dtype=torch.float64) for _ in range(2)]
    _, logs = loss.generator_loss(images, output, last_layer, 0, noise=noise[1])
    sample = output.sample.detach()
    torch.testing.assert_close(
        logs["train/g_loss"], -loss.discriminator(sample + noise[1]).mean().detach()
    )
    torch.testing.assert_close(logs["train/nll_loss"], (images - sample).abs().sum() / 2)
    _, logs = loss.discriminator_loss(images, sample, noise=noise)
    for name, seen in (("real", images + noise[0]), ("fake", sample + noise[1])):
        want = loss.discriminator(seen).mean().detach()
        torch.testing.assert_close(logs[f"train/logits_{name}"], want)
