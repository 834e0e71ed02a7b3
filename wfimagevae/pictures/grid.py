"""Grids of images, one row a prompt or class, with names at the left and above."""

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from wfimagevae.files import write_atomically
from wfimagevae.pictures.pixels import to_uint8

_GAP, _TITLE_HEIGHT, _MAX_LABEL_WIDTH, _LINE_HEIGHT = 4, 24, 200, 18
_LEGIBLE = 96  # px, what a tiny image is enlarged to, about
_BACKGROUND, _INK = (255, 255, 255), (17, 24, 39)


def sample_grid(
    images: Tensor,
    columns: int,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
) -> Image.Image:
    """Lays images out row by row; tiny ones are enlarged by a whole factor, pixel by pixel.

    Args:
        images: In [-1, 1], clamped to it, (B, 3, H, W).
        columns: Images in a row; the last row may be shorter.
        row_labels: A name for each row, shown at its left, on several lines if it is long.
        column_labels: A name for each column, shown above it.

    Returns:
        The picture, RGB.

    Raises:
        ValueError: no RGB image, values that are not finite, or as many labels as do not fit.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(f"a grid is made of RGB images (B, 3, H, W), got {tuple(images.shape)}")
    if not images.isfinite().all():
        raise ValueError("images for a grid hold values that are not finite")
    if columns < 1:
        raise ValueError(f"a grid needs at least 1 column, got {columns}")
    rows = math.ceil(len(images) / columns)
    for what, labels, count in (("row", row_labels, rows), ("column", column_labels, columns)):
        if labels is not None and len(labels) != count:
            raise ValueError(f"{len(labels)} {what} labels for a grid of {count} {what}s")
    pixels = enlarge(to_uint8(images)).permute(0, 2, 3, 1).cpu().numpy()  # (B, h, w, 3)
    height, width = pixels.shape[1:3]
    font = ImageFont.load_default(size=14)
    left = _GAP + (_label_width(row_labels, font) if row_labels else 0)
    top = _GAP + (_TITLE_HEIGHT if column_labels else 0)
    size = (left + columns * (width + _GAP), top + rows * (height + _GAP))
    grid = Image.new("RGB", size, _BACKGROUND)
    for i, picture in enumerate(pixels):
        row, column = divmod(i, columns)
        place = (left + column * (width + _GAP), top + row * (height + _GAP))
        grid.paste(Image.fromarray(picture), place)
    draw = ImageDraw.Draw(grid)
    for row, label in enumerate(row_labels or ()):
        place = (_GAP, top + row * (height + _GAP) + height // 2)
        lines = wrap(label, _MAX_LABEL_WIDTH, max(height // _LINE_HEIGHT, 1), font)
        draw.multiline_text(place, "\n".join(lines), _INK, font, anchor="lm")
    for column, label in enumerate(column_labels or ()):
        place = (left + column * (width + _GAP) + width // 2, _TITLE_HEIGHT // 2)
        draw.text(place, _fit(label, width, font), _INK, font, anchor="mm")
    return grid


def save_grid(
    path: str | Path,
    images: Tensor,
    columns: int,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
) -> None:
    """Writes `sample_grid` of the same arguments as a PNG, in one step."""
    grid = sample_grid(images, columns, row_labels, column_labels)
    write_atomically(Path(path), lambda file: grid.save(file, format="png"))


def enlarge(pixels: Tensor) -> Tensor:
    """Repeats the pixels of tiny images, (B, 3, H, W), a whole number of times, to about 96 px."""
    factor = max(1, _LEGIBLE // max(pixels.shape[-2:]))
    return pixels.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def _label_width(labels: Sequence[str], font) -> int:
    widths = [font.getlength(label) for label in labels]
    return min(math.ceil(max(widths)), _MAX_LABEL_WIDTH) + 2 * _GAP


def wrap(text: str, width: int, max_lines: int, font) -> list[str]:
    """Lines of at most ``width`` pixels; the last is cut short where there are too few of them."""
    lines: list[str] = []
    words = text.split()
    for i, word in enumerate(words):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        elif len(lines) < max_lines:
            lines.append(word)
        else:
            lines[-1] = " ".join([lines[-1], *words[i:]])
            break
    return [_fit(line, width, font) for line in lines]


def _fit(text: str, width: int, font) -> str:
    """The text, cut short with an ellipsis where it is wider than ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
