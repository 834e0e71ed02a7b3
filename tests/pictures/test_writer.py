"""Image files are whole or not there."""

import os

import pytest
import torch
from PIL import Image

from wfimagevae.pictures.writer import save_image


@pytest.mark.parametrize("extension", ["png", "jpg", "jpeg", "webp"])
def test_a_kill_before_the_end_leaves_no_image(tmp_path, monkeypatch, extension):
    path, pixels = tmp_path / f"image.{extension}", torch.full((3, 8, 12), 200, dtype=torch.uint8)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        save_image(path, pixels)
    assert not path.exists()
    save_image(path, pixels)
    image = Image.open(path)
    assert image.size == (12, 8) and image.getpixel((3, 3)) == (200, 200, 200)
    assert image.format == {"jpg": "JPEG", "jpeg": "JPEG"}.get(extension, extension.upper())
