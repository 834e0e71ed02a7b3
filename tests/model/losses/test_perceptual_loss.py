"""The VAE's losses against golden values of the reference, and against autograd."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from wfimagevae.model.losses import LossConfig, LPIPSWithDiscriminator2D
from wfimagevae.model.modeling_aebase import DiagonalGaussian

GOLDEN = Path(__file__).parents[2] / "golden" / "vae_losses_hinge"


@pytest.fixture(scope="module")
def golden():
    expected = json.loads((GOLDEN / "expected.json").read_text())
    tensors = load_file(GOLDEN / "tensors.safetensors")
    options = {k: v for k, v in expected["options"].items() if k in LossConfig.model_fields}
    loss = LPIPSWithDiscriminator2D(LossConfig(**options, wavelet_loss=True))
    loss.discriminator.load_state_dict(load_file(GOLDEN / "discriminator.safetensors"))
    return SimpleNamespace(expected=expected, tensors=tensors, loss=loss)


def vae_output(tensors, last_layer):
    posterior = DiagonalGaussian(tensors["moments"])
    return SimpleNamespace(
        sample=F.conv2d(tensors["hidden"], last_layer, padding=1),
        latent_dist=posterior,
        latent=posterior.mean,
        extra_output=[[tensors[f"{half}_coeffs.{i}"] for i in (0, 1)] for half in ("enc", "dec")],
    )


def small_loss(**options) -> LPIPSWithDiscriminator2D:
    torch.manual_seed(0)
    defaults = {"perceptual_weight": 0.0, "disc_num_layers": 1, "disc_start": 0}
    return LPIPSWithDiscriminator2D(LossConfig(**defaults | options))


def random_case(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    shapes = {"hidden": (2, 4, 16, 16), "moments": (2, 8, 2, 2)}
    shapes |= {"enc_coeffs.0": (2, 12, 4, 4), "enc_coeffs.1": (2, 12, 2, 2)}
    options = {"generator": generator, "dtype": dtype}
    tensors = {name: torch.randn(shape, **options) for name, shape in shapes.items()}
    tensors["dec_coeffs.0"] = tensors["enc_coeffs.1"] + 1
    tensors["dec_coeffs.1"] = tensors["enc_coeffs.0"] - 1
    last_layer = 0.2 * torch.randn(3, 4, 3, 3, **options)
    images = torch.rand(2, 3, 16, 16, **options) * 2 - 1
    return images, tensors, last_layer.requires_grad_()


def generator_loss(loss, case, step=0):
    """The value and logs of a loss for such a case."""
    images, tensors, last_layer = case
    return loss.generator_loss(images, vae_output(tensors, last_layer), last_layer, step)


def test_generator_loss_and_its_logs_match_the_golden_values(golden):
    tensors, last_layer = golden.tensors, golden.tensors["last_layer"].clone().requires_grad_()
    images = tensors["inputs"]
    loss, logs = generator_loss(golden.loss, (images, tensors, last_layer))
    values = images[0].numel()
    torch.testing.assert_close(
        loss.item() * values, golden.expected["generator_loss"], rtol=1e-5, atol=1e-4
    )
    names = "total_loss kl_loss nll_loss rec_loss wl_loss d_weight g_loss logvar"
    for name in names.split():
        want = golden.expected["logs"][f"train/{name}"]
        assert logs[f"train/{name}"].item() == pytest.approx(want, rel=1e-5, abs=1e-5), name
    loss.backward()
    torch.testing.assert_close(
        last_layer.grad * values, tensors["grad_last_layer"], rtol=1e-4, atol=1e-2
    )


def test_discriminator_loss_and_logits_match_the_golden_values(golden):
    tensors = golden.tensors
    fake = F.conv2d(tensors["hidden"], tensors["last_layer"], padding=1)
    loss, logs = golden.loss.discriminator_loss(tensors["inputs"], fake)
    assert loss.item() == pytest.approx(golden.expected["discriminator_loss"], abs=1e-5)
    for name in ("train/logits_real", "train/logits_fake"):
        assert logs[name].item() == pytest.approx(golden.expected["logs"][name], abs=1e-5)
    torch.testing.assert_close(
        golden.loss.discriminator(tensors["inputs"]), tensors["logits_real"], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("loss_type", ["l1", "l2"])
def test_gradient_is_that_of_the_plain_sum_of_terms(loss_type):
    """With a constant weight the image-gradient detour must not show: autograd on the sum."""
    loss = small_loss(adaptive_weight=False, disc_weight=0.7, loss_type=loss_type, kl_weight=0.1)
    loss = loss.double()
    images, tensors, last_layer = case = random_case(torch.float64)
    got, _ = generator_loss(loss, case)
    (gradient,) = torch.autograd.grad(got, last_layer)

    sample = vae_output(tensors, last_layer).sample
    error = (images - sample).abs() if loss_type == "l1" else (images - sample) ** 2
    plain = error.sum() / 2 - 0.7 * loss.discriminator(sample).mean()
    (want,) = torch.autograd.grad(plain / images[0].numel(), last_layer)
    torch.testing.assert_close(gradient, want, rtol=1e-10, atol=1e-14)


def test_adaptive_weight_balances_the_two_gradients_at_the_last_layer():
    loss = small_loss(disc_weight=0.5)
    images, tensors, last_layer = case = random_case()
    _, logs = generator_loss(loss, case)
    sample = vae_output(tensors, last_layer).sample
    nll = (images - sample).abs().sum() / 2
    (nll_grad,) = torch.autograd.grad(nll, last_layer, retain_graph=True)
    (g_grad,) = torch.autograd.grad(-loss.discriminator(sample).mean(), last_layer)
    want = 0.5 * nll_grad.norm() / (g_grad.norm() + 1e-6)
    torch.testing.assert_close(logs["train/d_weight"], want, rtol=1e-4, atol=0)


def test_vanilla_loss_of_undecided_logits_is_log_two():
    loss = small_loss(disc_loss="vanilla")
    with torch.no_grad():
        loss.discriminator.main[-1].weight_orig.mul_(0).add_(1e-20)
    value, _ = loss.discriminator_loss(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16))
    assert value.item() == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-5)


def test_adversarial_term_starts_and_ramps_when_told():
    loss = small_loss(disc_start=10, disc_ramp_steps=4)
    assert [loss.config.disc_factor(s) for s in (0, 9, 10, 11, 13, 100)] == [0, 0, 0.25, 0.5, 1, 1]
    assert "train/g_loss" not in generator_loss(loss, random_case(), step=9)[1]


def test_weights_of_zero_compute_nothing():
    loss = small_loss(kl_weight=0, wavelet_weight=0, rec_weight=0, adaptive_weight=False)
    images, tensors, last_layer = random_case()
    output = vae_output(tensors, last_layer)
    output.latent_dist = output.extra_output = None  # touching them would raise
    value, logs = loss.generator_loss(images, output, last_layer, 0)
    sample = vae_output(tensors, last_layer).sample
    want = -0.5 * loss.discriminator(sample).mean()
    assert value.item() * images[0].numel() == pytest.approx(want.item(), rel=1e-4)
    assert {"train/kl_loss", "train/wl_loss"}.isdisjoint(logs)
    (got,) = torch.autograd.grad(value, last_layer)
    (plain,) = torch.autograd.grad(want / images[0].numel(), last_layer)
    torch.testing.assert_close(got, plain, rtol=1e-3, atol=1e-8)


def test_non_finite_reconstruction_shows_in_the_loss():
    case = random_case()
    case[1]["hidden"][0, 0, 0, 0] = float("nan")
    assert not generator_loss(small_loss(), case)[0].isfinite()


def test_an_adaptive_weight_without_a_reconstruction_term_is_refused():
    with pytest.raises(ValueError, match="--no_adaptive_weight"):
        small_loss(rec_weight=0)


def test_both_gradients_of_the_adaptive_weight_are_averaged_by_one_call():
    images, tensors, last_layer = random_case()
    loss, seen = small_loss(), []

    def other_ranks(gradients):
        seen.append(gradients.shape)
        return gradients * torch.tensor([6.0, 2.0]).view(2, 1, 1, 1, 1)

    weights = []
    for average in (lambda gradients: gradients, other_ranks):
        output = vae_output(tensors, last_layer)
        logs = loss.generator_loss(images, output, last_layer, 0, average)[1]
        weights.append(logs["train/d_weight"].item())
    assert seen == [(2, *last_layer.shape)]
    assert weights[1] == pytest.approx(3 * weights[0], rel=1e-4)
