import lpips
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from tests.refusals import refused
from wfimagevae.eval.evaluator import Evaluator
from wfimagevae.eval.options import MetricOptions
from wfimagevae.eval.psnr import psnr
from wfimagevae.eval.ssim import _blur, ssim


def noisy_pair(height=37, width=52, noise=0.1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 3, height, width, generator=generator)
    x[1] = 0.9 + 0.01 * x[1]  # flat and bright, where variances cancel
    y = (x + noise * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    return x, y


@pytest.mark.parametrize("noise", [0.3, 0.01])
def test_ssim_of_each_image_agrees_with_scikit_image(noise):
    x, y = noisy_pair(noise=noise)
    how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    how |= {"data_range": 1, "channel_axis": 0}
    pairs = zip(x.double().numpy(), y.double().numpy(), strict=True)
    expected = [structural_similarity(*pair, **how) for pair in pairs]
    np.testing.assert_allclose(ssim(x, y).numpy(), expected, atol=1e-9)


def test_means_of_the_window_are_those_of_scipy_to_the_last_digits():
    x = torch.rand(2, 3, 37, 52, dtype=torch.float64) - 0.5
    expected = gaussian_filter(x.numpy(), 1.5, radius=5, axes=(2, 3))[..., 5:-5, 5:-5]
    np.testing.assert_allclose(_blur(x).numpy(), expected, rtol=0, atol=1e-15)


def test_psnr_of_each_image_agrees_with_scikit_image():
    x, y = noisy_pair()
    pairs = zip(x.numpy(), y.numpy(), strict=True)
    expected = [peak_signal_noise_ratio(a, b, data_range=1) for a, b in pairs]
    np.testing.assert_allclose(psnr(x, y).numpy(), expected, atol=1e-5)


def test_identical_images_have_infinite_psnr_and_ssim_one_down_to_its_window():
    x, _ = noisy_pair()
    assert psnr(x, x).isinf().all()
    torch.testing.assert_close(ssim(x, x), torch.ones(3, dtype=torch.float64))
    x = torch.rand(1, 3, 10, 64)
    refused("at least 11", ssim, x, x)
    smallest = torch.rand(1, 3, 11, 11)
    assert ssim(smallest, smallest).item() == pytest.approx(1)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_values_outside_the_unit_range_and_unequal_shapes_are_refused(metric):
    x, y = noisy_pair()
    for bad in (x * 2 - 1, x + 0.5, x * 255, torch.full_like(x, torch.nan)):
        refused("must lie in", metric, bad, y)
    for a, b in ((x, y[:1]), (x[0], y[0])):
        refused("one shape", metric, a, b)


def test_lpips_of_pairs_is_the_lpips_packages_mean_and_small_images_are_refused(alexnet_weights):
    package = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    backbone = torch.load(alexnet_weights, weights_only=True)
    for key in package.net.state_dict():  # slice1.0.weight is features.0.weight
        package.net.state_dict()[key].copy_(backbone["features." + key.split(".", 1)[1]])
    x, y = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    options = MetricOptions(lpips_net="alex", lpips_weights=alexnet_weights)
    evaluator = Evaluator(["lpips"], torch.device("cpu"), options)
    with torch.no_grad():
        expected = package(x, y).mean().item()
    for pair in ((x[:1], y[:1]), (x[1:], y[1:])):
        evaluator.update(*pair)
    assert expected > 1e-3 and evaluator.compute() == {"lpips": pytest.approx(expected)}
    evaluator.reset()
    evaluator.update(x[..., :31, :31], x[..., :31, :31])
    assert evaluator.compute() == {"lpips": 0}
    refused("at least 31", evaluator.update, x[..., :30, :], x[..., :30, :])
