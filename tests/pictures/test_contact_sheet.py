"""Contact sheets show what they say."""

import numpy as np
import pytest
from PIL import Image

from wfimagevae.pictures.grid import amplified_error, save_contact_sheet


def grey(level, size=(40, 20)):
    return Image.new("RGB", size, (level, level, level))


def test_error_is_amplified_and_saturates():
    assert amplified_error(grey(100), grey(97), 5).getpixel((3, 3)) == (15, 15, 15)
    assert amplified_error(grey(97), grey(100), 5).getpixel((3, 3)) == (15, 15, 15)
    assert amplified_error(grey(0), grey(200), 5).getpixel((3, 3)) == (255, 255, 255)


def test_images_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(40, 20\) and \(20, 40\)"):
        amplified_error(grey(0), grey(0, (20, 40)), 5)


def test_sheet_has_a_row_an_image_and_a_column_a_kind(tmp_path):
    files = []
    for i, level in enumerate((60, 120, 130)):
        files.append(tmp_path / f"{i}.png")
        grey(level).save(files[-1])
    path = tmp_path / "sheet.png"
    save_contact_sheet(
        path, files[:2], [("other", files[2:] * 2), ("same", files[:2])], row_height=20
    )
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet.convert("L"))
    assert pixels.shape == (2 * (20 + 24 + 8), 4 * 48 + 8)
    middle_row, step = 24 + 10, 48
    assert [int(pixels[middle_row, 8 + 20 + i * step]) for i in range(4)] == [60, 130, 60, 0]
