import numpy as np
import pytest
import torch
from PIL import Image

from wfimagevae.dataset.images.transforms import center_crop, resized_center_crop
from wfimagevae.dataset.protocol import to_signed_unit


def test_center_crop_is_the_middle_and_resized_by_powers_of_two_averages_blocks():
    small = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    image = Image.fromarray(small)
    assert np.array_equal(center_crop(image, 5), small[1:6, 3:8])
    assert np.array_equal(center_crop(image, None), small)
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
