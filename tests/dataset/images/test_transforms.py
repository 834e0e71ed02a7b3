import random

import numpy as np
import pytest
import torch
from PIL import Image

from wfimagevae.dataset.images.transforms import (
    center_crop,
    random_crop,
    resized_center_crop,
    to_signed_unit,
)


def grid(width, height):
    """An image whose pixel (x, y) is (x, y, 0)."""
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=2))


def test_random_crop_is_a_piece_of_the_image_or_its_mirror_image():
    rng = random.Random(0)
    crops = np.stack([random_crop(grid(9, 7), (4, 5), rng) for _ in range(500)]).astype(int)
    xs, ys = crops[:, 0, :, 0], crops[:, :, 0, 1]
    assert (crops[..., 0] == xs[:, None]).all() and (crops[..., 1] == ys[:, :, None]).all()
    assert (np.diff(ys) == 1).all() and (np.diff(xs) == np.diff(xs)[:, :1]).all()
    assert set(zip(xs.min(1), ys.min(1), strict=True)) == set(np.ndindex(5, 4))
    assert 200 < (xs[:, 0] > xs[:, -1]).sum() < 300


def test_center_crop_is_the_middle_and_resized_by_powers_of_two_averages_blocks():
    crop = center_crop(grid(10, 7), 5)
    assert crop[0, 0].tolist() == [2, 1, 0] and crop[-1, -1].tolist() == [6, 5, 0]
    assert center_crop(grid(10, 7), None).shape == (7, 10, 3)
    small = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    image = Image.fromarray(small.repeat(4, 0).repeat(4, 1))  # 48 x 32
    assert np.array_equal(resized_center_crop(image, 8), small[:, 2:10])


def test_pixels_span_minus_one_to_one_and_stay_channels_last():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(2, 1, 1, 3)
    image = to_signed_unit(pixels)
    assert image.shape == (2, 3, 16, 16) and image.dtype == torch.float32
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert (image.min(), image.max()) == (-1, 1)
    torch.testing.assert_close((image[0, 0].flatten() + 1) * 127.5, torch.arange(256.0))


@pytest.mark.parametrize(("width", "height"), [(90, 40), (40, 90), (16, 16), (10, 12), (33, 31)])
def test_resized_centre_keeps_scale_and_middle(width, height):
    """A horizontal ramp stays one: its slope tells the scale, its mean the place."""
    ramp = 60 + 120 * (np.arange(width) + 0.5) / width
    pixels = np.tile(ramp[None, :, None], (height, 1, 3)).round().astype(np.uint8)
    crop = resized_center_crop(Image.fromarray(pixels), 16)
    assert crop.shape == (16, 16, 3)
    assert abs(crop.mean() - 120) < 4  # half a pixel of rounding
    inner = crop[8, 2:-2, 0].astype(float)
    slope = (inner[-1] - inner[0]) / (len(inner) - 1)
    assert slope == pytest.approx(120 / width * min(width, height) / 16, rel=0.15)
