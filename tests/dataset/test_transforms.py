import random

import numpy as np
import torch
from PIL import Image

from wfimagevae.dataset.transforms import center_crop, random_crop, to_signed_unit


def grid(width, height):
    """An image whose pixel (x, y) is (x, y, 0)."""
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=2))


def test_random_crop_is_a_piece_of_the_image_or_its_mirror_image():
    rng, corners, flips = random.Random(0), set(), 0
    for _ in range(500):
        crop = random_crop(grid(9, 7), 5, rng)
        assert crop.shape == (5, 5, 3)
        xs, ys = crop[0, :, 0].astype(int), crop[:, 0, 1].astype(int)
        assert (np.diff(ys) == 1).all()
        assert (np.diff(xs) == 1).all() or (np.diff(xs) == -1).all()
        assert (crop[..., 0] == xs).all()
        assert (crop[..., 1] == ys[:, None]).all()
        corners.add((xs.min(), ys.min()))
        flips += xs[0] > xs[-1]
    assert corners == {(x, y) for x in range(5) for y in range(3)}
    assert 200 < flips < 300


def test_center_crop_is_the_middle():
    crop = center_crop(grid(10, 7), 5)
    assert crop[0, 0].tolist() == [2, 1, 0] and crop[-1, -1].tolist() == [6, 5, 0]
    assert center_crop(grid(10, 7), None).shape == (7, 10, 3)


def test_pixels_span_minus_one_to_one_and_stay_channels_last():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(2, 1, 1, 3)
    image = to_signed_unit(pixels)
    assert image.shape == (2, 3, 16, 16) and image.dtype == torch.float32
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert (image.min(), image.max()) == (-1, 1)
    torch.testing.assert_close((image[0, 0].flatten() + 1) * 127.5, torch.arange(256.0))
