import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, JpegImagePlugin, PngImagePlugin

from wfimagevae.dataset.images import decode
from wfimagevae.dataset.images.decode import DRAFT_MARGIN, UnreadableImage, image_size, open_rgb

KINDS = ("jpg", "png", "webp", "bmp", "gif", "tif", "avif")


def pixels(path, **options):
    image = open_rgb(str(path), **options)
    assert image.mode == "RGB"
    return np.asarray(image).astype(float)


def reason(path, **options):
    with pytest.raises(UnreadableImage) as caught:
        open_rgb(str(path), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def turned(orientation=6, **entries):
    """EXIF data of a turned picture, and other entries by number."""
    exif = Image.Exif()
    for number, value in {"0x0112": orientation, **entries}.items():
        exif[int(number, 16)] = value
    return exif


@pytest.mark.parametrize("suffix", KINDS)
def test_each_format_gives_the_saved_pixels_and_gray_equal_channels(tmp_path, natural, suffix):
    image, path = natural(48, 32), tmp_path / f"a.{suffix}"
    image.save(path, quality=95)
    error = np.abs(pixels(path) - np.asarray(image)).mean()
    assert error <= (0 if suffix in ("png", "bmp", "tif") else 3)
    image.convert("L").save(path, quality=100)
    gray = np.asarray(image.convert("L"))[..., None]
    np.testing.assert_allclose(pixels(path), np.repeat(gray, 3, 2), atol=8)
    assert np.ptp(pixels(path), axis=2).max() <= (2 if suffix in ("webp", "avif") else 0)


def test_each_file_gives_the_pixels_of_its_first_frame_whatever_its_extension(tmp_path, noise):
    noise(9, 7).save(tmp_path / "a.jpg", format="PNG")
    np.testing.assert_array_equal(pixels(tmp_path / "a.jpg"), np.asarray(noise(9, 7)))
    more = {"save_all": True, "append_images": [noise(8, 8, seed=1)], "lossless": True}
    noise(8, 8).save(tmp_path / "a.webp", **more)
    np.testing.assert_array_equal(pixels(tmp_path / "a.webp"), np.asarray(noise(8, 8)))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
@pytest.mark.parametrize("orientation", [*range(1, 10), 255])
def test_exif_orientation_is_applied(tmp_path, noise, suffix, orientation):
    path = tmp_path / f"a.{suffix}"
    noise(11, 7).save(path, exif=turned(orientation), quality=95)
    with Image.open(path) as stored:
        upright = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    np.testing.assert_array_equal(pixels(path), upright)  # above 8: libvips/libvips #1514
    assert upright.shape == ((11, 7, 3) if 5 <= orientation <= 8 else (7, 11, 3))
    assert image_size(str(path)) == upright.shape[1::-1]


def test_exif_of_16_bit_and_transparent_images_counts_and_odd_blocks_do_no_harm(tmp_path, noise):
    Image.new("RGBA", (11, 7), (1, 2, 3, 4)).save(tmp_path / "rgba.png", exif=turned())
    Image.fromarray(np.zeros((7, 11), np.uint16)).save(tmp_path / "deep.png", exif=turned())
    for name in ("rgba.png", "deep.png"):
        assert pixels(tmp_path / name).shape == (11, 7, 3)
    noise(11, 7).save(tmp_path / "a.webp", exif=b"Exif\x00\x00no tiff header", lossless=True)
    np.testing.assert_array_equal(pixels(tmp_path / "a.webp"), np.asarray(noise(11, 7)))
    odd = turned(3, **{"0x9286": b"\xff" * 40, "0x010F": "x" * 2000})
    noise(11, 7).save(tmp_path / "a.png", exif=odd)
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), np.asarray(noise(11, 7))[::-1, ::-1])


@pytest.mark.parametrize("suffix", ["png", "bmp"])
def test_palettes_and_single_bits_give_their_colours(tmp_path, noise, suffix):
    for image in (noise(16, 8).quantize(16), noise(16, 8).convert("1")):
        image.save(tmp_path / f"a.{suffix}")
        np.testing.assert_array_equal(pixels(tmp_path / f"a.{suffix}"), image.convert("RGB"))


def test_transparency_is_composited_over_white(tmp_path):
    image, path = Image.new("RGBA", (3, 1)), tmp_path / "a.png"
    image.putdata([(200, 100, 0, 255), (200, 100, 0, 0), (200, 100, 0, 51)])
    image.save(path)
    expected = [[[200, 100, 0], [255, 255, 255], [244, 224, 204]]]
    np.testing.assert_allclose(pixels(path), expected, atol=1)
    entry = Image.new("P", (2, 1))
    entry.putpalette([10, 20, 30, 40, 50, 60])
    entry.putdata([0, 1])
    entry.save(path, transparency=1)
    np.testing.assert_array_equal(pixels(path), [[[10, 20, 30], [255, 255, 255]]])
    Image.new("LA", (2, 2), (50, 0)).save(path)
    assert (pixels(path) == 255).all()
    Image.new("RGB", (2, 2), (1, 2, 3)).save(path, transparency=(1, 2, 3))
    assert (pixels(path) == 255).all()


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255,) * 3, (0,) * 3])
def test_cmyk_gives_the_printed_colour(tmp_path, colour):
    ink = (*(255 - c for c in colour), 0)
    Image.new("CMYK", (16, 16), ink).save(tmp_path / "a.jpg", quality=100)
    np.testing.assert_allclose(pixels(tmp_path / "a.jpg")[8, 8], colour, atol=4)


def test_16_bit_gray_is_scaled_not_clipped(tmp_path):
    deep = np.linspace(0, 65535, 64 * 16).astype(np.uint16).reshape(16, 64)
    Image.fromarray(deep).save(tmp_path / "a.png")
    expected = np.repeat(deep[..., None] / 257, 3, 2)
    np.testing.assert_allclose(pixels(tmp_path / "a.png"), expected, atol=0.51)


@pytest.mark.parametrize("suffix", KINDS)
def test_truncated_empty_and_foreign_files_are_unreadable(tmp_path, natural, suffix):
    path = tmp_path / f"a.{suffix}"
    natural(64, 64).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert reason(path)
    for content in (b"", np.random.default_rng(0).bytes(3000)):
        path.write_bytes(content)
        assert "not a JPEG" in reason(path)


@pytest.mark.parametrize("suffix", KINDS)
def test_flipped_bytes_never_raise_anything_else(tmp_path, natural, suffix):
    path, rng = tmp_path / f"a.{suffix}", np.random.default_rng(0)
    exif = {} if suffix == "bmp" else {"exif": turned(6, **{"0x010F": "maker"})}
    natural(40, 30).save(path, **exif)
    whole, failures = np.frombuffer(path.read_bytes(), np.uint8), 0
    for _ in range(200):
        damaged = whole.copy()
        damaged[rng.integers(0, min(len(whole), 300), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        try:
            open_rgb(str(path), short_side=10)
        except UnreadableImage:
            failures += 1
    assert failures > 0


def test_missing_small_and_forbidden_files_say_so(tmp_path, noise):
    (tmp_path / "x.jpg").mkdir()
    assert reason(tmp_path / "none.jpg") == "No such file or directory"
    assert reason(tmp_path / "x.jpg") == "Is a directory"
    noise(40, 31).save(tmp_path / "a.png")
    assert reason(tmp_path / "a.png", min_side=32) == "too small: 40x31, needs at least 32x32"
    assert pixels(tmp_path / "a.png", min_side=31).shape == (31, 40, 3)
    (tmp_path / "a.png").chmod(0)
    user = os.geteuid()
    if user == 0:  # root may read everything
        os.seteuid(65534)
    try:
        assert reason(tmp_path / "a.png") == "Permission denied"
    finally:
        os.seteuid(user)


def test_limit_of_pixels_is_ours_and_counts_them_as_they_are_decoded(tmp_path, noise, monkeypatch):
    """Detectron2 #1221, yolov5 #7003: Pillow's limit is of the header, and has no remedy."""
    for name, more in (("a.png", {}), ("a.jpg", {}), ("p.jpg", {"progressive": True})):
        noise(400, 300).save(tmp_path / name, **more)
    Image.new("L", (1, 400)).save(tmp_path / "thin.png")
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert pixels(tmp_path / "a.png").shape == (300, 400, 3)
        monkeypatch.setattr(decode, "_MAX_PIXELS", 30_000)
        assert pixels(tmp_path / "a.jpg", short_side=15).shape == (15, 20, 3)
        for name, more in {"a.png": 15, "a.jpg": 120, "p.jpg": 15, "thin.png": 9}.items():
            text = reason(tmp_path / name, short_side=more)
            assert "decompression bomb" in text and "WFIMAGEVAE_MAX_MEGAPIXELS" in text
            assert image_size(str(tmp_path / name)) != (0, 0)
    assert not shown and Image.MAX_IMAGE_PIXELS is None


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (61, 60), (600, 7)])
@pytest.mark.parametrize("short_side", [5, 30, 100])
def test_short_side_is_met_exactly_and_the_shape_kept(tmp_path, noise, size, short_side):
    noise(*size).save(tmp_path / "a.png")
    height, width, _ = pixels(tmp_path / "a.png", short_side=short_side).shape
    assert min(width, height) == short_side
    assert width / height == pytest.approx(size[0] / size[1], rel=0.5 / short_side + 0.01)


def test_resizing_does_not_alias(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "a.png")
    np.testing.assert_allclose(pixels(tmp_path / "a.png", short_side=16), 127.5, atol=16)


@pytest.fixture
def drafts(monkeypatch):
    """Scales at which JPEGs were decoded."""
    scales, draft = [], JpegImagePlugin.JpegImageFile.draft

    def spy(image, mode, size):
        full_width, result = image.width, draft(image, mode, size)
        scales.append(round(full_width / image.width))
        return result

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", spy)
    return scales


@pytest.mark.parametrize("size", [(601, 400), (403, 605), (402, 401)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_draft_decoding_equals_full_decoding(tmp_path, natural, drafts, size, orientation):
    exif = turned(orientation)
    natural(*size).save(tmp_path / "a.jpg", quality=92, exif=exif)
    with Image.open(tmp_path / "a.jpg") as full:
        full.save(tmp_path / "a.png", exif=exif)  # a PNG is always decoded in full
    for short_side, scale in ((16, 8), (32, 4), (64, 2)):
        pair = [pixels(tmp_path / name, short_side=short_side) for name in ("a.jpg", "a.png")]
        assert 10 * np.log10(255**2 / np.mean((pair[0] - pair[1]) ** 2)) > 45
        assert drafts.pop() == scale
    near = min(size) // (2 * DRAFT_MARGIN) + 1  # where it would cost quality
    pair = [pixels(tmp_path / name, short_side=near) for name in ("a.jpg", "a.png")]
    np.testing.assert_array_equal(*pair)
    assert drafts == [1]


def chunk(kind, content):
    """A chunk of a PNG file."""
    length, checksum = (struct.pack(">I", n) for n in (len(content), zlib.crc32(kind + content)))
    return length + kind + content + checksum


def saved_with(folder, image, more, before):
    """A PNG file with more chunks before one of its own."""
    image.save(folder / "a.png")
    whole = (folder / "a.png").read_bytes()
    place = whole.index(before) - 4
    (folder / "a.png").write_bytes(whole[:place] + more + whole[place:])
    return folder / "a.png"


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("kind", [b"eXIf", b"iTXt", b"tEXt", b"none"])
def test_size_of_a_turned_png_is_upright_wherever_that_is_said(tmp_path, noise, kind, is_late):
    exif = turned().tobytes()
    contents = {
        b"eXIf": exif[6:],
        b"iTXt": b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>',
        b"tEXt": b"Raw profile type exif\0\nexif\n 26\n" + exif.hex().encode() + b"\n",
    }
    more = chunk(kind, contents[kind]) if kind in contents else b""
    path = saved_with(tmp_path, noise(11, 7), more, b"IEND" if is_late else b"IDAT")
    assert image_size(str(path)) == ((11, 7) if kind == b"none" else (7, 11))
    assert image_size(str(path)) == open_rgb(str(path)).size


@pytest.mark.parametrize("more", [b"", chunk(b"tEXt", b"date:create\x002026-01-01")])
def test_size_of_a_png_is_read_without_its_pixels(tmp_path, noise, more, monkeypatch):
    path = saved_with(tmp_path, noise(11, 7), more, b"IEND")
    for cls in (Image.Image, PngImagePlugin.PngImageFile):
        monkeypatch.setattr(cls, "load", lambda image: pytest.fail("decoded"))
    assert image_size(str(path)) == (11, 7)
