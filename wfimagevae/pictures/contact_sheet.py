"""Contact sheets: each original beside its reconstruction and the amplified error."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GAP, _LABEL_HEIGHT = 8, 24
_BACKGROUND, _INK = (255, 255, 255), (17, 24, 39)


def amplified_error(original: Image.Image, other: Image.Image, gain: float) -> Image.Image:
    """Absolute difference of two RGB images of one size, times ``gain``, black where equal.

    Raises:
        ValueError: the sizes differ.
    """
    if original.size != other.size:
        raise ValueError(f"images of one size are compared, got {original.size} and {other.size}")
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

    Args:
        path: Image file to write.
        originals: Image files, one a row.
        columns: Title and image files of each further column, as many and of the same sizes.
        gain: Factor of the error shown, in units of grey levels.
        row_height: Of each picture, in pixels; the error is taken at full size.

    Raises:
        ValueError: an image and its partner differ in size.
    """
    titles = ["original", *(title for title, _ in columns), f"error x {gain:g}"]
    rows = []
    for files in zip(originals, *(files for _, files in columns), strict=True):
        pictures = [_read(file) for file in files]
        pictures.append(amplified_error(pictures[0], pictures[-1], gain))
        names = [f"{Path(files[0]).name}: {title}" for title in titles]
        rows.append(_row(pictures, names, row_height))
    width = max(row.width for row in rows)
    sheet = Image.new("RGB", (width, sum(row.height for row in rows)), _BACKGROUND)
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    sheet.save(path)


def _read(path: str | Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _row(pictures: list[Image.Image], names: list[str], height: int) -> Image.Image:
    scaled = [
        picture.resize((round(picture.width * height / picture.height), height), Image.LANCZOS)
        for picture in pictures
    ]
    size = (sum(p.width + _GAP for p in scaled) + _GAP, height + _LABEL_HEIGHT + _GAP)
    row = Image.new("RGB", size, _BACKGROUND)
    draw, font, left = ImageDraw.Draw(row), ImageFont.load_default(size=14), _GAP
    for picture, name in zip(scaled, names, strict=True):
        draw.text((left, 4), name, fill=_INK, font=font)
        row.paste(picture, (left, _LABEL_HEIGHT))
        left += picture.width + _GAP
    return row
