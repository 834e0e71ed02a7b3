"""Image files are whole or not there; the table of patch scores has each step's rows once."""

import csv
import os
from unittest.mock import Mock

import pytest
import torch
from PIL import Image

from tests.refusals import refused
from wfimagevae.pictures.patch_maps import SUMMARY, append_summary
from wfimagevae.pictures.writer import save_image


def rows_of(*steps):
    return [[step, f"{i}.png", 0.5, -0.5, -1.0, 0.0] for step in steps for i in range(2)]


def test_a_run_that_went_back_has_each_row_once(tmp_path):
    path = tmp_path / "new" / "summary.csv"
    for step in (2, 4, 10, 4):
        append_summary(path, rows_of(step))
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == list(SUMMARY)
    assert rows == [[str(value) for value in row] for row in rows_of(2, 4)]
    path.write_text(path.read_text() + "5,0.png,0.5")  # a line that a kill cut short
    append_summary(path, rows_of(6))
    steps = [line.split(",")[0] for line in path.read_text().splitlines()]
    assert steps == ["step", "2", "2", "4", "4", "6", "6"]


@pytest.mark.parametrize("extension", ["png", "jpg", "jpeg", "webp"])
def test_a_kill_before_the_end_leaves_no_image(tmp_path, monkeypatch, extension):
    path, pixels = tmp_path / f"image.{extension}", torch.full((3, 8, 12), 200, dtype=torch.uint8)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", Mock(side_effect=KeyboardInterrupt("killed")))
        refused("killed", save_image, path, pixels, error=KeyboardInterrupt)
    assert not path.exists()
    save_image(path, pixels)
    image = Image.open(path)
    assert image.size == (12, 8) and image.getpixel((3, 3)) == (200, 200, 200)
    assert image.format == {"jpg": "JPEG", "jpeg": "JPEG"}.get(extension, extension.upper())
