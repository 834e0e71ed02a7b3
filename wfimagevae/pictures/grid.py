"""Pictures in rows and columns with names: grids of samples, sheets of reconstructions."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from wfimagevae.files import write_atomically
from wfimagevae.pictures.pixels import from_uint8, to_uint8

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

    Images, (B, 3, H, W), are clamped to [-1, 1]; the last row may be shorter. Labels stand at the
    left of each row and above each column, on several lines if they are long. A wrong number of
    labels is a ValueError.
    """
    rows = math.ceil(len(images) / columns)

    # Tiny images become legible: each pixel a square.
    pixels = to_uint8(images)
    factor = max(1, _LEGIBLE // max(pixels.shape[-2:]))
    pixels = pixels.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    height, width = pixels.shape[-2:]

    # Labels take room at the left and above.
    font, left = ImageFont.load_default(size=14), _GAP
    if row_labels:
        widest = max(font.getlength(label) for label in row_labels)
        left += min(math.ceil(widest), _MAX_LABEL_WIDTH) + 2 * _GAP
    words = " ".join(column_labels or ()).split()
    cell = max(width, *(math.ceil(font.getlength(word)) for word in words), 0)
    heads = [wrap(head, cell, len(head), font) for head in column_labels or ()]
    title_height = _TITLE_HEIGHT + (max(map(len, heads), default=1) - 1) * _LINE_HEIGHT
    top = _GAP + (title_height if heads else 0)
    size = left + columns * (cell + _GAP), top + rows * (height + _GAP)
    canvas = Image.new("RGB", size, _BACKGROUND)
    lefts = [left + column * (cell + _GAP) + (cell - width) // 2 for column in range(columns)]
    tops = [top + row * (height + _GAP) for row in range(rows)]
    for i, picture in enumerate(pixels.permute(0, 2, 3, 1).cpu().numpy()):
        canvas.paste(Image.fromarray(picture), (lefts[i % columns], tops[i // columns]))
    write = partial(ImageDraw.Draw(canvas).text, fill=_INK, font=font)
    for label, row_top in zip(row_labels or [""] * rows, tops, strict=True):
        lines = wrap(label, _MAX_LABEL_WIDTH, max(height // _LINE_HEIGHT, 1), font)
        write((_GAP, row_top + height // 2), "\n".join(lines), anchor="lm")
    for lines, column_left in zip(heads or [[]] * columns, lefts, strict=True):
        write((column_left + width // 2, title_height // 2), "\n".join(lines), anchor="mm")
    return canvas


def save_png(path: Path, picture: Image.Image) -> None:
    """Writes a picture as a PNG, in one step."""
    write_atomically(path, lambda file: picture.save(file, format="png"), is_lasting=False)


def wrap(text: str, width: int, max_lines: int, font) -> list[str]:
    """Lines of at most ``width`` pixels; those that are longer end in an ellipsis.

    The last of ``max_lines`` has all that is left.
    """
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and (len(lines) == max_lines or font.getlength(longer) <= width):
            lines[-1] = longer
        else:
            lines.append(word)
    return [_fit(line, width, font) for line in lines]


def _fit(line: str, width: int, font) -> str:
    end = ""
    while line and font.getlength(line + end) > width:
        line, end = line[:-1], "…"
    return line + end


def amplified_error(original: Image.Image, other: Image.Image, gain: float) -> Image.Image:
    """Absolute difference of two RGB images, black where equal; ValueError if sizes differ."""
    difference = np.abs(np.asarray(original, dtype=np.float32) - np.asarray(other))  # (H, W, 3)
    return Image.fromarray((difference * gain).clip(0, 255).astype(np.uint8))


def save_contact_sheet(
    path: str | Path,
    originals: Sequence[str | Path],
    columns: Sequence[tuple[str, Sequence[str | Path]]],
    gain: float = 5.0,
    row_height: int = 320,
) -> None:
    """Writes a labelled sheet: a row an image; original, every column, error of the last one.

    ``columns`` are titles and image files, as many as originals and of the same sizes, or it is a
    ValueError. ``gain`` is the factor of the error shown, which is taken at full size;
    ``row_height`` is in pixels.
    """
    titles = ["original", *(title for title, _ in columns), f"error x {gain:g}"]
    rows = []
    for files in zip(originals, *(files for _, files in columns), strict=True):
        pictures = [Image.open(file).convert("RGB") for file in files]
        pictures.append(amplified_error(pictures[0], pictures[-1], gain))
        size = round(pictures[0].width * row_height / pictures[0].height), row_height
        cells = np.stack([picture.resize(size, Image.LANCZOS) for picture in pictures])
        images = from_uint8(torch.from_numpy(cells).permute(0, 3, 1, 2))
        heads = [f"{Path(files[0]).name}: {title}" for title in titles]
        rows.append(sample_grid(images, len(images), column_labels=heads))
    width, top = max(row.width for row in rows), 0
    sheet = Image.new("RGB", (width, sum(row.height for row in rows)), _BACKGROUND)
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    sheet.save(path)
