import os

import numpy as np
import torch
from PIL import Image, ImageFont

from tests.refusals import refused
from wfimagevae.pictures.grid import (
    amplified_error,
    sample_grid,
    save_contact_sheet,
    save_png,
    wrap,
)


def flat(levels, size=96):
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, size, size) / 127.5 - 1


def array(image):
    return np.asarray(image.convert("RGB")).astype(int)


def test_grid_places_images_row_by_row_and_enlarges_tiny_ones_without_blurring():
    pixels = array(sample_grid(flat([10.0, 50, 90, 130, 170]), columns=3))
    assert pixels.shape == (4 + 2 * 100, 4 + 3 * 100, 3)
    centres = pixels[52::100, 52::100, 0]
    assert centres.tolist() == [[10, 50, 90], [130, 170, 255]]
    images = torch.zeros(1, 3, 2, 2) - 1
    images[..., 0, 0] = 1
    pixels = array(sample_grid(images, columns=1))[4:-4, 4:-4]
    assert pixels.shape == (96, 96, 3)
    assert np.unique(pixels).tolist() == [0, 255]
    assert pixels[47, 47].tolist() == [255] * 3 and pixels[48, 48].tolist() == [0] * 3


def test_row_labels_take_room_at_the_left_with_ink_in_every_row():
    plain = sample_grid(flat([100.0] * 4), columns=2)
    named = sample_grid(flat([100.0] * 4), 2, row_labels=["red circle", "blue square"])
    extra = named.width - plain.width
    assert extra > 40 and named.height == plain.height
    margin = array(named)[:, :extra]
    for row in range(2):
        strip = margin[4 + row * 100 : 100 + row * 100]
        assert (strip < 100).any() and (strip == 255).any()
    np.testing.assert_array_equal(array(named)[:, extra:], array(plain))


def test_file_is_the_grid_and_no_leftover_stands_beside_it(tmp_path):
    images = torch.rand(3, 3, 100, 100) * 2 - 1
    grid = sample_grid(images, 3, column_labels=["a", "b", "c"])
    save_png(tmp_path / "new" / "grid.png", grid)
    assert os.listdir(tmp_path / "new") == ["grid.png"]
    with Image.open(tmp_path / "new" / "grid.png") as image:
        assert image.size == (4 + 3 * 104, 4 + 24 + 104)
        first = array(image)[28:128, 4:104]
    expected = ((images[0] + 1) * 127.5).round().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(first, expected)


def test_labels_that_do_not_fit_are_refused():
    images = torch.zeros(4, 3, 8, 8)
    refused("is longer than", sample_grid, images, 2, ["one"])
    refused("is shorter than", sample_grid, images, 2, None, ["a", "b", "c"])


def test_long_titles_take_several_lines_and_long_names_are_cut_short():
    font = ImageFont.load_default(size=14)
    text = "a very long prompt about a red circle that lies to the left of a blue square"
    lines = wrap(text, 120, 5, font)
    assert " ".join(lines) == text and len(lines) > 3
    assert all(font.getlength(line) <= 120 for line in lines)
    cut = wrap(text, 120, 2, font)
    assert len(cut) == 2 and cut[0] == lines[0] and cut[1].endswith("…")
    assert wrap("", 120, 2, font) == []
    named = sample_grid(flat([100.0]), 1, row_labels=["x" * 500], column_labels=["y"])
    assert named.width < 4 + 100 + 230
    # A heading is read whole above a narrow picture, in as many lines as it takes.
    high, low = (sample_grid(flat([100.0], 40), 1, None, [head]) for head in ("a b c " * 9, "a"))
    assert high.height > low.height + 18 and high.width == low.width
    assert sample_grid(flat([100.0]), 1, None, ["m" * 12]).width > 4 + 100


def grey(level, size=(40, 20)):
    return Image.new("RGB", size, (level, level, level))


def test_error_is_amplified_and_saturates_for_images_of_one_size():
    for first, second, error in ((100, 97, 15), (97, 100, 15), (0, 200, 255)):
        picture = amplified_error(grey(first), grey(second), 5)
        assert picture.getpixel((3, 3)) == (error,) * 3
    refused(r"\(20,40,3\) \(40,20,3\)", amplified_error, grey(0), grey(0, (20, 40)), 5)


def test_sheet_has_a_row_an_image_and_a_column_a_kind(tmp_path):
    files, path = [tmp_path / f"{level}.png" for level in (60, 120, 130)], tmp_path / "sheet.png"
    for file in files:
        grey(int(file.stem)).save(file)
    columns = [("other", files[2:] * 2), ("same", files[:2])]
    save_contact_sheet(path, files[:2], columns, row_height=100)
    pixels = array(Image.open(path))[..., 0]
    assert pixels.shape == (2 * (100 + 24 + 8), 4 * 204 + 4)
    middle_row, step = 28 + 50, 204
    assert [int(pixels[middle_row, 4 + 100 + i * step]) for i in range(4)] == [60, 130, 60, 0]
