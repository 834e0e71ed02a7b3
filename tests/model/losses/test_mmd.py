"""The latents' MMD against plain double loops, samples of the prior, and a split over ranks."""

import math

import pytest
import torch

from wfimagevae.model.losses.mmd import BANDWIDTHS, VECTORS_PER_IMAGE, latent_mmd, normal_mmd


def alone(rows):
    return rows


def vectors_like(n, d, seed=0, scale=0.5, shift=0.4):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, d, generator=generator, dtype=torch.float64) + shift


def kernel(x, y):
    distance = sum((a - b) ** 2 for a, b in zip(x, y, strict=True))
    return sum(math.exp(-distance / (2 * s * len(x))) for s in BANDWIDTHS) / len(BANDWIDTHS)


def looped_pairs(x):
    """Mean kernel of pairs of different vectors."""
    n, x = len(x), x.tolist()
    total = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j)
    return total / (n * (n - 1))


def test_expectations_over_the_prior_are_those_of_numerical_integration():
    y = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    density = (-y.square() / 2).exp() / math.sqrt(2 * math.pi) * (y[1] - y[0])
    x = torch.tensor([[0.3], [-1.2], [2.0]], dtype=torch.float64)
    grid = (y[:, None] - y[None]).square()
    near = (x - y).square()
    want = looped_pairs(x)
    for s in BANDWIDTHS:
        cross = ((-near / (2 * s)).exp() * density).sum(1).mean()
        prior = density @ (-grid / (2 * s)).exp() @ density
        want += (prior - 2 * cross).item() / len(BANDWIDTHS)
    assert normal_mmd(x, torch.ones(3), alone).item() == pytest.approx(want, rel=1e-9)


def test_normal_vectors_have_none_and_others_have():
    normal = normal_mmd(vectors_like(2000, 4, scale=1, shift=0), torch.ones(2000), alone)
    assert abs(normal.item()) < 1e-3
    for scale, shift in ((1, 1), (0.1, 0), (3, 0)):
        other = normal_mmd(vectors_like(300, 4, 0, scale, shift), torch.ones(300), alone)
        assert other.item() > 0.02


def test_its_estimate_is_unbiased_for_few_vectors():
    """Means over many small samples agree with the value of one large sample."""
    large = normal_mmd(vectors_like(3000, 2), torch.ones(3000), alone)
    x = vectors_like(3000, 2).view(-1, 3, 2)
    small = torch.stack([normal_mmd(part, torch.ones(3), alone) for part in x])
    assert small.mean().item() == pytest.approx(large.item(), abs=4 * small.std().item() / 31)


def test_gradient_is_that_of_differences_though_pairs_are_seen_from_one_end():
    x, eps = vectors_like(6, 3).requires_grad_(), 1e-6
    (gradient,) = torch.autograd.grad(normal_mmd(x, torch.ones(6), alone), x)
    for i, j in ((0, 0), (3, 2), (5, 1)):
        step = torch.zeros_like(x)
        step[i, j] = eps
        ends = [normal_mmd((x + sign * step).detach(), torch.ones(6), alone) for sign in (1, -1)]
        want = (ends[0] - ends[1]).item() / (2 * eps)
        assert gradient[i, j].item() == pytest.approx(want, rel=1e-5, abs=1e-9)


def test_ranks_together_give_the_value_and_gradient_of_one_process():
    x = vectors_like(12, 3).requires_grad_()
    weights = torch.ones(12)
    weights[[2, 7, 8]] = 0  # unequal shares
    whole = normal_mmd(x, weights, alone)
    (want,) = torch.autograd.grad(whole, x)
    rows = torch.cat([x, weights[:, None]], dim=1).detach()
    shares = [normal_mmd(x[p], weights[p], lambda _: rows) for p in (slice(0, 6), slice(6, 12))]
    torch.testing.assert_close(sum(shares) / 2, whole)
    torch.testing.assert_close(torch.autograd.grad(sum(shares) / 2, x)[0], want)
    counted = normal_mmd(x[weights > 0], torch.ones(9), alone)
    torch.testing.assert_close(counted, whole)


def test_every_latent_pixel_has_its_turn_also_by_even_steps():
    latent = torch.randn(2, 4, 20, 20, requires_grad=True)
    seen = torch.zeros(400)
    for step in range(0, 100, 2):
        (gradient,) = torch.autograd.grad(latent_mmd(latent, step, alone), latent)
        touched = gradient.abs().sum((0, 1)).flatten() > 0
        assert touched.sum() == VECTORS_PER_IMAGE
        seen += touched
    assert (seen > 0).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (16, 8)])
def test_small_images_count_each_pixel_once(size):
    latent = torch.randn(1, 4, *size, dtype=torch.float64)
    vectors = latent[0].flatten(1).t()
    want = normal_mmd(vectors, torch.ones(len(vectors)), alone)
    torch.testing.assert_close(latent_mmd(latent, 3, alone), want)
    assert want.isfinite()


def test_latents_in_half_precision_are_compared_in_float32():
    latent = torch.randn(2, 4, 8, 8).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = latent_mmd(latent, 0, alone)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, latent_mmd(latent.float(), 0, alone))
    value.backward()
    assert latent.grad.isfinite().all()
