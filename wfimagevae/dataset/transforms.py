"""From upright RGB images to crops, and from 8-bit crops to tensors in [-1, 1]."""

import random

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def random_crop(image: Image.Image, size: int, rng: random.Random) -> np.ndarray:
    """A square crop at a uniformly random place, mirrored left to right half of the time.

    Args:
        image: RGB, at least ``size`` pixels high and wide.
        size: Height and width of the crop, in pixels.
        rng: Source of the three random numbers used.

    Returns:
        uint8, (size, size, 3).
    """
    # random() is the one method whose stream Python promises to keep between versions.
    left = int(rng.random() * (image.width - size + 1))
    top = int(rng.random() * (image.height - size + 1))
    crop = image.crop((left, top, left + size, top + size))
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(crop)


def center_crop(image: Image.Image, size: int | None) -> np.ndarray:
    """The middle square of ``size`` pixels, or the whole image for None, as uint8 (h, w, 3)."""
    if size is None:
        return np.array(image)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.array(image.crop((left, top, left + size, top + size)))


def to_signed_unit(pixels: Tensor) -> Tensor:
    """uint8 pixels, channels last (..., h, w, 3), as float32 (..., 3, h, w) in [-1, 1].

    The memory stays channels last: only the shape is permuted.
    """
    return pixels.movedim(-1, -3).to(torch.float32).div_(127.5).sub_(1.0)
