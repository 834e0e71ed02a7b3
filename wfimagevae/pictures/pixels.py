"""Conversions between [-1, 1], [0, 1] and 8 bits, and the range checks of the metrics."""

import torch
from torch import Tensor


def unit_pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Two batches, (B, C, H, W), in double precision where the device has it.

    It is free of cancellation, and never run in TF32. Other shapes, or values outside [0, 1], are a
    ValueError.
    """
    if x.ndim != 4 or x.shape != y.shape:
        raise ValueError(
            f"expected two batches (B, C, H, W) of one shape, got {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )
    for images in (x, y):
        _check_range(images, 0.0)
    dtype = torch.float32 if x.device.type == "mps" else torch.float64
    return x.to(dtype), y.to(dtype)


def to_unit(images: Tensor) -> Tensor:
    """Maps images from [-1, 1] to [0, 1], float32; ValueError for values outside [-1, 1]."""
    _check_range(images, -1.0)
    return images.float().add(1).div(2)


def to_uint8(images: Tensor) -> Tensor:
    """Rounds images in [-1, 1], clamped to it, to the 8 bits that a file keeps."""
    return images.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """Images of 8 bits as float32 in [-1, 1]."""
    return images.float().div(127.5).sub(1)


def _check_range(images: Tensor, low: float) -> None:
    smallest, largest = images.aminmax()
    if not (smallest >= low and largest <= 1):  # written so that NaN fails, too
        raise ValueError(
            f"image values must lie in [{low:g}, 1], got [{smallest:.4g}, {largest:.4g}]; "
            "clamp or rescale them first"
        )
