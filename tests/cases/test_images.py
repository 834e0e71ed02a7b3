"""Image files as people have them: strange ones train, or are named and skipped; none is lost."""

import io
import json
import logging
import os
import random
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from scripts import eval_generation, eval_image
from tests.refusals import refused
from wfimagevae.dataset.arrays import IndexCache, json_array
from wfimagevae.dataset.images import decode, image_sets, index
from wfimagevae.dataset.images.crop_dataset import CropRules, TrainImageDataset
from wfimagevae.dataset.images.decode import UnreadableImage, image_size, open_rgb
from wfimagevae.dataset.images.image_sets import measured_sizes
from wfimagevae.dataset.images.index import index_images
from wfimagevae.dataset.images.transforms import center_crop


def saved(kind, image=None, **options):
    file = io.BytesIO()
    (image or Image.new("RGB", (48, 32), (200, 100, 50))).save(file, kind, **options)
    return file.getvalue()


def chunk(kind, content):
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def exif(value, kind=3, count=1):
    """An EXIF block whose orientation is any value (of four bytes) of any kind."""
    entry = struct.pack("<HHHI", 1, 274, kind, count) + value.ljust(4, b"\0") + bytes(4)
    return b"Exif\0\0II*\0\x08\0\0\0" + entry


GRAY = Image.new("L", (48, 32), 7)
PNG, JPEG = saved("PNG"), saved("JPEG")
SIGNATURE, HEADER = PNG[:8], PNG[8:33]
CLEAR = Image.new("P", (48, 32))
CLEAR.putpalette([9, 9, 9])
CLEAR_PNG = saved("PNG", CLEAR)
ENDLESS = {"save_all": True, "append_images": [GRAY.convert("RGB")]}

READABLE = {
    "animation.gif": saved("GIF", **ENDLESS),
    "animation.webp": saved("WEBP", **ENDLESS),
    "animation.png": saved("PNG", **ENDLESS),
    "pages.tif": saved("TIFF", **ENDLESS),
    "deep.png": saved("PNG", Image.fromarray(np.zeros((32, 48), np.uint16))),
    "deep.tiff": saved("TIFF", Image.fromarray(np.zeros((32, 48), np.uint16))),
    "ink.jpg": saved("JPEG", Image.new("CMYK", (48, 32))),
    "ink.tif": saved("TIFF", Image.new("CMYK", (48, 32))),
    "la.png": saved("PNG", GRAY.convert("LA")),
    "clear.png": saved("PNG", CLEAR, transparency=b"\0\x10"),
    "a.avif": saved("AVIF"),
    "browser.JFIF": JPEG,
    "wrong-name.gif": JPEG,
    "icc.png": SIGNATURE + HEADER + chunk(b"iCCP", b"x\0\0junk") + PNG[33:],
    "icc.jpg": saved("JPEG", icc_profile=b"junk" * 99),
    "exif.jpg": saved("JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
    "text.webp": saved("WEBP", exif=exif(b"up", kind=2, count=3)),
    "two\nlines \x1b[31m.jpg": JPEG,
}
UNREADABLE = {
    "empty.jpg": (b"", "not a JPEG, PNG"),
    "page.jpg": (b"<html>403 Forbidden</html>", "not a JPEG, PNG"),
    "cut.jpg": (saved("JPEG", Image.effect_noise((48, 32), 99))[:-400], "truncated"),
    # A palette image without palette: Pillow fails an assertion.
    "palette.png": (re.sub(rb"....PLTE(.{3})+?....(?=\0\0..IDAT)", b"", CLEAR_PNG), "damaged: "),
    "bomb.png": (
        SIGNATURE + chunk(b"IHDR", struct.pack(">2I5B", 90000, 90000, 8, 2, 0, 0, 0)) + PNG[33:],
        "decompression bomb: 90000x90000 pixels to decode, more than 268 million",
    ),
    "float.tif": (saved("TIFF", GRAY.convert("F")), "pixels of 32 bits"),
}


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    for name, content in READABLE.items():
        (root / name).write_bytes(content)
    for name, (content, _) in UNREADABLE.items():
        (root / name).write_bytes(content)
    (root / "directory.jpg").mkdir()
    (root / "broken.png").symlink_to("nowhere.png")
    (root / "loop.png").symlink_to("loop.png")
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "pipe.jpg")
    return root


def test_strange_images_are_read_and_bad_ones_are_named_once_each(folder, tmp_path):
    """NVIDIA/DIGITS #1642 and what lies beside it; a PNG without palette killed training."""
    found = index_images(folder, tmp_path / "cache")
    links = {"broken.png": "No such file", "loop.png": "symbolic links", "pipe.jpg": "not a JPEG"}
    reasons = {name: text for name, (_, text) in UNREADABLE.items()} | links
    assert {found.relative(i) for i in range(len(found))} == {*READABLE, *reasons}
    for i in range(len(found)):
        name = found.relative(i)
        if name in READABLE:
            assert open_rgb(found.file(i)).size == image_size(found.file(i)) == (48, 32), name
        else:
            with pytest.raises(UnreadableImage, match=reasons[name]):
                open_rgb(found.file(i))
    # All are met in an epoch, and each bad one is told of once, with its name.
    data = TrainImageDataset(folder, 16, cache_dir=tmp_path / "cache")
    told = [entry for p in range(len(data)) for entry in data.read_batch([p])["unreadable"]]
    assert sorted(os.path.basename(name) for name, _ in told) == sorted(reasons)
    (folder / "browser.JFIF").unlink()  # while training runs
    late = [
        entry
        for p in range(len(data), 3 * len(data))
        for entry in data.read_batch([p])["unreadable"]
    ]
    assert [(os.path.basename(name), text) for name, text in late] == [
        ("browser.JFIF", "No such file or directory")
    ]


def test_no_header_makes_pixels_beyond_the_limit(monkeypatch):
    """To see the orientation that stands behind the pixels of a PNG, they are decoded."""
    late = PNG[:-12] + chunk(b"eXIf", exif(b"\6")[6:]) + PNG[-12:]
    assert image_size(io.BytesIO(late)) == (32, 48)
    monkeypatch.setattr(decode, "_MAX_PIXELS", 1000)
    assert image_size(io.BytesIO(late)) == (0, 0)
    with pytest.raises(UnreadableImage, match="decompression bomb: 48x32"):
        open_rgb(io.BytesIO(late), (9, 8))


@pytest.mark.parametrize("orientation", [b"\1", b"\5", b"\x08", b"\x09", b"\xff", (b"up", 2, 3)])
def test_no_orientation_gives_black_crops(tmp_path, orientation):
    """libvips/libvips #1514, wagtail/Willow #36: above 8 width and height were swapped."""
    path, is_turned = tmp_path / "a.jpg", orientation in (b"\5", b"\x08")
    block = exif(orientation) if isinstance(orientation, bytes) else exif(*orientation)
    path.write_bytes(saved("JPEG", Image.new("RGB", (144, 96), "white"), exif=block))
    images = index_images(tmp_path, tmp_path / "cache")
    width, height = image_size(str(path))
    assert (width < height) == is_turned
    bucket = (64, 96) if width > height else (96, 64)
    for kind in ("native", "resized", "center"):
        crop = CropRules(64, kind).crop(images, 0, bucket, random.Random(0))
        assert crop.shape[:2] == bucket and crop.min() > 250
    with pytest.raises(UnreadableImage, match=r"crop of 97x64 .* leaves the 96x64 image"):
        center_crop(Image.new("RGB", (96, 64)), (64, 97))


def test_start_line_counts_images_and_what_is_left_out_by_extension(tmp_path, caplog, monkeypatch):
    """NVIDIA/DIGITS #1642, catalyst-team/classification #38: files were left out silently."""
    monkeypatch.setattr(index, "EXTENSIONS", tuple(e for e in index.EXTENSIONS if "hei" not in e))
    names = [
        "a.jpg",
        "sub/b.GIF",
        "c.tiff",
        "d.heic",
        "sub/e.HEIC",
        "f.JPG_large",
        "g.jxl",
        "h.txt",
    ]
    for name in names:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).touch()
    caplog.set_level(logging.INFO)
    for _ in range(2):  # as listed, and from the cache
        assert len(index_images(tmp_path / "images", tmp_path / "cache")) == 3
        (line,) = [record.getMessage() for record in caplog.records]
        head, _, others = line.partition("; left out by their extension: ")
        assert head == f"{tmp_path / 'images'}: 3 images"
        assert sorted(others.split(", ")) == [
            "1 .jpg_large", "1 .jxl", "2 .heic (pip install pillow-heif)",
        ]  # fmt: skip
        caplog.clear()


WRONG = [[], {"a/": 3}, {"": [None, [3], [], {}]}, {"": [["x"], 0, [], {}]}, {"": [None, 1, 2]}]
WRONG += [{"": [None, 1, [], {}]}, {"": [None, 2, [], {}]}]


@pytest.mark.parametrize("content", WRONG)
def test_cache_of_another_structure_is_made_anew(tmp_path, caplog, content):
    """Of the right version, but not what was written: once a traceback."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(PNG)
    root, place = str(tmp_path / "images"), tmp_path / "cache"
    lists, sizes = (IndexCache(place, what) for what in ("image lists", "image sizes"))
    names = np.frombuffer(b"x", np.uint8)
    arrays = {"folders": json_array(content), "names": names}
    lists.save(root, index._CACHE_VERSION, arrays)
    images = index_images(root, place)
    one = np.zeros(1, np.uint64)
    for kept in ({}, {"ids": one}, {"ids": one, "sizes": one}):
        sizes.save(root, image_sets._SIZES_VERSION, kept)
        assert measured_sizes(images, place).tolist() == [[48, 32]]
    assert sum("are unusable" in record.getMessage() for record in caplog.records) >= 4


def test_damaged_held_out_files_cost_one_image_each_not_the_figures(tmp_path, capsys):
    """microsoft/Biodiversity #658 and #94: a damaged half, or its missing partner, is left out."""
    for name in ("held", "rec"):
        (tmp_path / name).mkdir()
        for i in range(7):
            pixels = np.random.default_rng(i + 9 * (name == "rec")).integers(0, 255, (16, 16, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name / f"{i}.png")
    (tmp_path / "held" / "broken.jpg").write_text("403 Forbidden")  # recon_image.py left it out
    (tmp_path / "held" / "1.png").write_bytes(b"")
    (tmp_path / "rec" / "2.png").write_bytes(PNG[:60])
    sources = ["--real_image_dir", "held", "--generated_image_dir", "rec", "--resolution", "16"]
    options = [*sources, "--num_workers", "0", "--device", "cpu", "--output_json", "out.json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert eval_image.main([*options, "--metric", "psnr"]) == 1
        found = json.loads((tmp_path / "out.json").read_text())
        assert [name for name, _ in found["unreadable"]] == ["1.png", "2.png", "broken.jpg"]
        assert found["protocol"]["count"] == 5 and found["protocol"]["left_out"] == 3
        assert "unreadable: 2.png: generated image 2.png: " in capsys.readouterr().err
        assert eval_generation.main([*options, "--metric", "energy_distance"]) == 1
        found = json.loads((tmp_path / "out.json").read_text())
        assert len(found["unreadable"]) == 3
        (result,) = found["results"]
        assert result["energy_distance"] is not None
        counts = [("real_count", 6), ("real_left_out", 2), ("generated_left_out", 1)]
        assert result["protocol"].items() >= {*counts, ("generated_count", 6)}
        options[5] = "8"  # of both
        assert eval_generation.main([*options, "--metric", "energy_distance"]) == 1
        (tmp_path / "rec" / "3.png").unlink()
        alone = "1 originals have no reconstruction: 3.png"
        refused(alone, eval_image.main, [*options, "--metric", "psnr"])
