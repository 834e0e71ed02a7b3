"""Image files as upright 8-bit RGB, or a one-line reason why not."""

import functools
import math
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

# By content, whatever the name says; a closed list keeps Pillow's exotic readers out of reach.
_FORMATS = ("JPEG", "PNG", "WebP", "BMP", "GIF", "TIFF", "AVIF")
HAS_HEIC, HEIC_INSTALL = bool(find_spec("pillow_heif")), "pip install pillow-heif"
INTERPOLATION = "bicubic"  # Pillow's: antialiased when shrinking, 8-bit in and out
# Measured on 750 photographs: scaled JPEG decoding then resizing by 3 or more differs from full
# decoding then resizing by 50 dB or more in 95 % of them (45 dB for a factor of 2).
DRAFT_MARGIN = 3

_LIMIT = "WFIMAGEVAE_MAX_MEGAPIXELS"
try:
    # Of a phone's 200 and more; a file that claims more is likely made to fill the memory.
    _MAX_PIXELS = int(float(os.environ.get(_LIMIT) or 268) * 1e6)
except (ValueError, OverflowError):
    raise ValueError(f"{_LIMIT}={os.environ[_LIMIT]}: write a number, such as 500") from None

# EXIF orientation to the transposition that undoes it. (ImageOps.exif_transpose also writes the
# EXIF data anew, and fails on odd entries that no one needs.)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Texts of a PNG in which Pillow finds an orientation, besides the chunk eXIf.
_PNG_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")


class UnreadableImage(ValueError):
    """A file gives no image; the message is the reason, without the path."""


def open_rgb(
    path: str | BinaryIO,
    min_side: int | tuple[int, int] = 1,
    short_side: int | tuple[int, int] | None = None,
    enlarge: bool = True,
) -> Image.Image:
    """Reads an image file of one of our formats, or its content, as an upright 8-bit RGB image.

    The EXIF orientation is applied. Grayscale and palette images become RGB, 16-bit grayscale is
    scaled to 8 bits, CMYK is converted without a colour profile (embedded profiles are ignored),
    and transparency is composited over white. Of several frames or pages, the first counts.

    Args:
        min_side: Smallest height and width, in pixels, that counts as readable.
        short_side: Resize so that the smaller of height and width has this many pixels, by
            `INTERPOLATION`. A JPEG at least twice `DRAFT_MARGIN` times as large is decoded at
            reduced scale. A pair: to the smallest size that has this height and width at least.
            None keeps the size.
        enlarge: Whether that may enlarge; else a smaller image keeps its size.

    Raises:
        UnreadableImage: missing, unreadable, corrupt, truncated, too small, or more pixels at the
            size it is decoded at, or resized to, than the environment allows.
    """
    try:
        with opened(path) as image:
            return _decode(image, min_side, short_side, enlarge)
    except UnreadableImage:
        raise
    except Exception as error:  # damaged files make decoders raise anything
        raise UnreadableImage(_reason(error)) from error


def image_size(file: str | BinaryIO) -> tuple[int, int]:
    """Width and height of an upright image, from its header; (0, 0) where it has none.

    Of the kinds of files only a PNG with EXIF behind its pixels, which is rare, is decoded for it.
    """
    try:
        with opened(file) as image:
            return image.size[:: -1 if _is_turned(image) else 1]
    except Exception:  # as above
        return 0, 0


@contextmanager
def opened(file: str | os.PathLike | BinaryIO) -> Iterator[Image.Image]:
    """Pillow's image of a file or its content, without warnings; what it raises is any error."""
    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.simplefilter("ignore")  # odd metadata of a readable image
        if isinstance(file, str | os.PathLike):
            # Pillow would map a file that may shrink.
            file = stack.enter_context(open(file, "rb", opener=open_now))
        yield stack.enter_context(Image.open(file, formats=_formats()))


def open_now(path: str, flags: int) -> int:
    """Opens a file, as `open`'s ``opener``, without waiting for who writes a named pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@functools.cache
def _formats() -> tuple[str, ...]:
    # Pillow's limit goes by the size in the header: ours, by what is decoded, takes its place.
    Image.MAX_IMAGE_PIXELS = None
    if not HAS_HEIC:
        return _FORMATS
    import pillow_heif

    pillow_heif.register_heif_opener()
    return (*_FORMATS, "HEIF")


def check_pixels(size: tuple[int, int], what: str) -> None:
    """Raises `UnreadableImage` for more pixels, of width and height, than one may have."""
    if size[0] * size[1] > _MAX_PIXELS:
        raise UnreadableImage(
            f"decompression bomb: {size[0]}x{size[1]} pixels {what}, more than "
            f"{_MAX_PIXELS / 1e6:g} million; if it is none, set {_LIMIT} higher"
        )


def _decode(
    image: Image.Image,
    min_side: int | tuple[int, int],
    short_side: int | tuple[int, int] | None,
    enlarge: bool,
) -> Image.Image:
    width, height = image.size
    least, cover = _pair(image, min_side), _pair(image, short_side or 0)
    if height < least[0] or width < least[1]:
        raise UnreadableImage(f"too small: {width}x{height}, needs at least {least[1]}x{least[0]}")
    size, box = (width, height), None
    short = math.ceil(min(size) * max(cover[0] / height, cover[1] / width) - 1e-9)
    if short and short != min(size) and (enlarge or short < min(size)):
        scale = short / min(size)
        size = max(short, round(width * scale)), max(short, round(height * scale))
        draft = image.draft(None, (DRAFT_MARGIN * size[0], DRAFT_MARGIN * size[1]))
        box = draft and draft[1]  # the exact frame: a reduced decode rounds its size up
    # A progressive JPEG keeps all of itself, whatever the scale.
    is_whole = "progressive" in image.info
    check_pixels((width, height) if is_whole else image.size, "to decode")
    check_pixels(size, f"after {width}x{height} is resized")
    image.load()
    rgb = _to_rgb(image)
    if size != rgb.size:
        rgb = rgb.resize(size, Image.Resampling[INTERPOLATION.upper()], box=box)
    turn = _turn(rgb)
    return rgb if turn is None else rgb.transpose(turn)


def _pair(image: Image.Image, sides: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width as the file stores them, before it is turned upright."""
    if isinstance(sides, int):
        return sides, sides
    return sides[::-1] if sides[0] != sides[1] and _is_turned(image) else sides


def _is_turned(image: Image.Image) -> bool:
    return _turn(image) in [_UPRIGHT[orientation] for orientation in (5, 6, 7, 8)]


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes an image upright; an orientation without a meaning is as good as none."""
    if image.format == "TIFF":  # Pillow turns these
        return None
    if image.format == "PNG" and _has_late_metadata(image.fp):
        check_pixels(image.size, "to decode")
        image.load()
    try:
        # Pillow's own for PNG decodes all pixels, to see what comes after them.
        is_png = image.format == "PNG"
        exif = Image.Image.getexif(image) if is_png else image.getexif()
        return _UPRIGHT.get(exif.get(ExifTags.Base.Orientation))
    except Exception:  # no EXIF block, or junk in it
        return None


def _has_late_metadata(file: BinaryIO | None) -> bool:
    """Whether a PNG tells of its orientation behind its pixels, from the heads of its chunks."""
    if file is None:  # all of it has been read
        return False
    place, is_late = file.tell(), False
    file.seek(8)
    try:
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            behind = file.tell() + length + 4  # content and checksum
            if is_late and (kind == b"eXIf" or file.read(22).startswith(_PNG_TEXTS)):
                return True
            is_late |= kind == b"IDAT"
            file.seek(behind)
        return False
    finally:
        file.seek(place)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or (image.mode, image.format) == ("I", "TIFF"):
        raise UnreadableImage("pixels of 32 bits, of which nothing says what is white")
    if image.mode.startswith("I"):  # 16-bit grayscale, which convert() would clip at 255
        gray = np.asarray(image).astype(np.uint32).clip(0, 65535)
        scaled = Image.fromarray(((gray * 255 + 32767) // 65535).astype(np.uint8))
        scaled.info = {key: image.info[key] for key in ("exif", "xmp") if key in image.info}
        return scaled.convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        white.info = rgba.info
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        kinds = f"{', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}"
        more = "" if HAS_HEIC else f"; for HEIC: {HEIC_INSTALL}"
        return f"not a {kinds} image, or damaged at its very start{more}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"damaged: {' '.join(str(error).split()) or type(error).__name__}"
