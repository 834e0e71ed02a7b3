"""Distances of image pairs in colour, histogram and contrast: differentiable, of any size.

All take a target and an image, (B, C, H, W) in float32 at least, and give (B,), in units of pixel
values, so that at equal weights they compare with the absolute error.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CONTRAST_WINDOW = 8
# Deviations far below one step of an 8-bit image (1/127.5) count little, and have no steep slope.
CONTRAST_FLOOR = 1e-4


def color_distance(target: Tensor, image: Tensor) -> Tensor:
    """Mean absolute difference of each channel's mean and of its standard deviation.

    At a constant channel, the deviation's gradient is zero.
    """
    means, deviations = zip(_moments(target), _moments(image), strict=True)
    return 0.5 * ((means[0] - means[1]).abs() + (deviations[0] - deviations[1]).abs()).mean(1)


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, (B, C) both."""
    mean = images.mean((2, 3), keepdim=True)
    variance = (images - mean).square().mean((2, 3))
    # The clamp changes no value that matters and cuts the square root's infinite slope at zero.
    return mean[..., 0, 0], variance.clamp_min(1e-20).sqrt()


def histogram_distance(target: Tensor, image: Tensor) -> Tensor:
    """Wasserstein-1 distance of the two histograms, mean over channels.

    It is the mean absolute difference of the sorted values: histograms of unlimited resolution,
    and a gradient for every pixel, which tells it where its rank belongs.
    """
    ordered = torch.sort(image.flatten(2), dim=2, stable=True).values  # (B, C, H W)
    target = torch.sort(target.flatten(2), dim=2).values
    return (ordered - target).abs().mean((1, 2))


def contrast_distance(target: Tensor, image: Tensor) -> Tensor:
    """Mean absolute difference of local standard deviations, in 8x8 windows at every 4th pixel."""
    return (_local_deviation(target) - _local_deviation(image)).abs().mean((1, 2, 3))


def _local_deviation(images: Tensor) -> Tensor:
    size = [min(CONTRAST_WINDOW, length) for length in images.shape[2:]]
    stride = [max(1, length // 2) for length in size]
    mean = F.avg_pool2d(images, size, stride)
    # Cancellation may leave a variance slightly below zero.
    variance = (F.avg_pool2d(images.square(), size, stride) - mean.square()).clamp_min(0)
    return (variance + CONTRAST_FLOOR).sqrt()
