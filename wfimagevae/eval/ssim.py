"""Structural similarity of images."""

import math

import torch
from torch import Tensor

from wfimagevae.pictures.pixels import unit_pair

TAPS = 11
SIGMA = 1.5


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity of each pair, averaged over channels and window positions.

    The window is a Gaussian of 11 taps (sigma 1.5) that stays inside the image; variances are those
    of the window, not of a sample (no N / (N - 1)). Images in [0, 1], (B, C, H, W), are at least 11
    pixels high and wide, or it is a ValueError; similarities are float64 in [-1, 1], (B,).

    Source: Wang et al. 2004, equation 13, K1 = 0.01, K2 = 0.03, data range 1.
    """
    x, y = unit_pair(x, y)
    if min(x.shape[-2:]) < TAPS:
        raise ValueError(f"SSIM needs images of at least {TAPS} x {TAPS}, got {tuple(x.shape)}")
    # Moments about 0.5 instead of 0: variances do not change, and cancel less.
    u, v = x - 0.5, y - 0.5
    mu_u, mu_v, uu, vv, uv = map(_blur, (u, v, u * u, v * v, u * v))
    var_u, var_v, cov = uu - mu_u * mu_u, vv - mu_v * mu_v, uv - mu_u * mu_v
    mu_x, mu_y = mu_u + 0.5, mu_v + 0.5
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mu_x * mu_y + c1) / (mu_x * mu_x + mu_y * mu_y + c1)
    contrast = (2 * cov + c2) / (var_u + var_v + c2)
    return (luminance * contrast).flatten(1).mean(1)


def _blur(maps: Tensor) -> Tensor:
    weights = [math.exp(-((i - TAPS // 2) ** 2) / (2 * SIGMA**2)) for i in range(TAPS)]
    # Along columns, then rows, by shifted sums: a convolution of one channel in float64 is slow.
    for dim in (-2, -1):
        size = maps.shape[dim] - TAPS + 1
        blurred = torch.zeros_like(maps.narrow(dim, 0, size))
        for i, weight in enumerate(weights):
            blurred.add_(maps.narrow(dim, i, size), alpha=weight / sum(weights))
        maps = blurred
    return maps
