"""Colour, histogram and contrast against NumPy, SciPy and differences; finite everywhere."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import wasserstein_distance

from wfimagevae.model.losses.image_statistics import (
    color_distance,
    contrast_distance,
    histogram_distance,
)

DISTANCES = pytest.mark.parametrize(
    "distance", [color_distance, histogram_distance, contrast_distance]
)


def random_images(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=dtype) * 2 - 1


@pytest.mark.parametrize("size", [(16, 12), (4, 8), (20, 36)])
def test_colour_compares_means_and_deviations_of_channels(size):
    a, b = random_images(2, 3, *size), 0.5 * random_images(2, 3, *size, seed=1) + 0.1
    got = color_distance(a, b)
    for i in range(2):
        x, y = a[i].flatten(1).numpy(), b[i].flatten(1).numpy()
        means, deviations = np.abs(x.mean(1) - y.mean(1)), np.abs(x.std(1) - y.std(1))
        assert got[i].item() == pytest.approx((means.mean() + deviations.mean()) / 2, rel=1e-12)
    torch.testing.assert_close(color_distance(a, a + 0.3), a.new_full((2,), 0.15))
    assert (color_distance(a, a).abs() < 1e-15).all()


def test_histogram_distance_is_the_wasserstein_distance():
    a, b = random_images(2, 3, 8, 12), random_images(2, 3, 8, 12, seed=1).square()
    want = [
        np.mean([wasserstein_distance(a[i, c].flatten(), b[i, c].flatten()) for c in range(3)])
        for i in range(2)
    ]
    torch.testing.assert_close(histogram_distance(a, b), torch.tensor(want))


def test_histograms_do_not_see_where_pixels_are():
    a = random_images(1, 3, 8, 8)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    shuffled = a.flatten(2)[:, :, order].view_as(a).requires_grad_()
    assert histogram_distance(a, shuffled).item() == 0
    (color_distance(a, shuffled) + histogram_distance(a, shuffled)).sum().backward()
    assert shuffled.grad.isfinite().all()


def test_contrast_compares_deviations_of_windows():
    a, b = random_images(2, 3, 16, 24), 0.3 * random_images(2, 3, 16, 24, seed=1)

    def deviations(x):
        windows = F.unfold(x.flatten(0, 1)[:, None], 8, stride=4)  # (B C, 64, windows)
        return (windows.var(1, correction=0) + 1e-4).sqrt()

    want = (deviations(a) - deviations(b)).abs().view(2, -1).mean(1)
    torch.testing.assert_close(contrast_distance(a, b), want)
    assert contrast_distance(a, a + 0.5).max() < 1e-12


@DISTANCES
def test_gradients_are_those_of_differences(distance):
    target, image = random_images(2, 3, 8, 12), random_images(2, 3, 8, 12, seed=1)
    assert torch.autograd.gradcheck(lambda x: distance(target, x), image.requires_grad_())


@DISTANCES
@pytest.mark.parametrize("value", [0.0, 0.7, -1.0])
def test_constant_images_have_finite_gradients(distance, value):
    constant = torch.full((1, 3, 8, 8), value)
    for target in (constant, random_images(1, 3, 8, 8, dtype=torch.float32)):
        image = constant.clone().requires_grad_()
        distance(target, image).sum().backward()
        assert image.grad.isfinite().all()
        # Rounding in sums must not blow up either: a bound of one pixel's whole share.
        assert image.grad.abs().max() <= 1
