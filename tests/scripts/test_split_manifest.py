"""One manifest or folder in two parts, the same each time."""

import json
import os

import pytest

from scripts.split_manifest import main
from tests.refusals import refused
from wfimagevae.dataset.images.index import index_images
from wfimagevae.dataset.text.captions import Captions, read_captions


@pytest.fixture
def split(tmp_path):
    """Splits a source; returns the records of each side."""

    def run(source, *flags):
        main(["--manifest", str(source), "--output_dir", str(tmp_path / "out"), *flags])
        sides = (tmp_path / "out" / f"{side}.jsonl" for side in ("train", "eval"))
        return [list(map(json.loads, side.read_text().splitlines())) for side in sides]

    return run


def write_manifest(folder, records):
    path = folder / "all.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_every_field_of_a_line_goes_along_with_an_absolute_path(split, tmp_path):
    facts = [
        {"caption": [f"a naïve {i}", "an image"], "label": i % 3, "nsfw": "UNLIKELY", "lang": "en"}
        for i in range(10)
    ]
    keys = ("image_path", "path", "target")
    lines = [{keys[i % 3]: f"photos/{i}.jpg"} | facts[i] for i in range(10)]
    train, held_out = split(write_manifest(tmp_path, lines), "--train_ratio", "0.7")
    assert (len(train), len(held_out)) == (7, 3)
    expected = [{"image_path": str(tmp_path / f"photos/{i}.jpg")} | facts[i] for i in range(10)]
    assert sorted(train + held_out, key=lambda record: record["image_path"]) == expected


def test_an_image_has_one_path_and_all_its_lines_one_side(split, tmp_path):
    lines = [{"path": f"old/{i}.jpg", "image_path": f"/new/{i}.jpg"} for i in range(4)]
    train, held_out = split(write_manifest(tmp_path, lines), "--train_ratio", "0.5")
    for record in train + held_out:
        assert list(record) == ["image_path"] and record["image_path"].startswith("/new/")
    lines = [{"path": f"{i % 8}.jpg", "caption": f"line {i}"} for i in range(24)]
    train, held_out = split(write_manifest(tmp_path, lines), "--train_ratio", "0.5")
    assert len(train) == len(held_out) == 12
    sides = [{record["image_path"] for record in side} for side in (train, held_out)]
    assert not sides[0] & sides[1]


def test_a_folder_is_split_the_same_way_each_time(split, photos):
    train, held_out = split(photos, "--train_ratio", "0.6")
    assert (len(train), len(held_out)) == (3, 2)
    paths = {record["image_path"] for record in train + held_out}
    assert paths == {str(path) for path in photos.rglob("*.*")}
    assert split(photos, "--train_ratio", "0.6") == [train, held_out]
    assert split(photos, "--train_ratio", "0.6", "--seed", "1") != [train, held_out]


def test_linked_images_keep_their_names_and_one_side(split, photos, tmp_path):
    folder = tmp_path / "linked"
    folder.mkdir()
    for i in range(6):
        os.symlink(photos / "a" / ("one.jpg" if i < 3 else "two.png"), folder / f"{i}.jpg")
        (folder / f"{i}.txt").write_text(f"image {i}")
    train, held_out = split(folder, "--train_ratio", "0.5")
    assert len(train) == len(held_out) == 3
    manifest = tmp_path / "out" / "train.jsonl"
    captions = read_captions(manifest, index_images(manifest), Captions("sidecar"))
    assert len(captions) == 3 and not len(captions.without())


def test_too_few_images_are_refused(split, tmp_path, photos):
    refused(r"5 images split by 1\.0 leave one side empty", split, photos, "--train_ratio", "1")
    (tmp_path / "empty").mkdir()
    refused(r"no images in .*empty", split, tmp_path / "empty")
