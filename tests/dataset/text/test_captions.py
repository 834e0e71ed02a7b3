import collections
import json
import pickle

import pytest

from tests.dataset.conftest import draw
from tests.dataset.reading import read_by
from tests.refusals import refused
from wfimagevae.dataset import (
    Captions,
    IndexedImages,
    Labels,
    ShapesDataset,
    TrainImageDataset,
    TrainLoader,
)
from wfimagevae.dataset.images.index import index_images
from wfimagevae.dataset.text.captions import CaptionTable, read_captions


@pytest.fixture
def photos(noise_files):
    """Four images, of which deep/b.jpg has another format and folder."""
    return noise_files("a.png", "deep/b.jpg", "deep/c.png", "d.png")


def captions_of(source, kind, prefix=""):
    images = index_images(source)
    table = read_captions(source, images, Captions(str(kind), prefix))
    return {images.relative(i): table.all(i) for i in range(len(images))}


def test_sidecars_give_a_caption_a_line(photos, caplog):
    (photos / "a.txt").write_text("\ufeffa cat\n\n  a small cat \r\n", encoding="utf-8")
    (photos / "deep" / "b.txt").write_text("ein Müller")
    (photos / "deep" / "c.txt").write_text(" \n\n")
    assert captions_of(photos, "sidecar") == {
        "a.png": ["a cat", "a small cat"],
        "deep/b.jpg": ["ein Müller"],
        "deep/c.png": [],
        "d.png": [],
    }
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "2 of 4 images have no caption" in warning and "d.png" in warning


def test_names_are_captions_without_a_number_in_front(noise_files):
    names = ("1694_a_red_fox.png", "deep/big cat_.jpg", "0007.png", "12 monkeys.png", "4x4.png")
    found = captions_of(noise_files(*names), "filename")
    expected = ["a red fox"], ["big cat"], [], ["monkeys"], ["4x4"]
    assert found == dict(zip(names, expected, strict=True))


def test_a_list_names_images_with_or_without_extension_and_several_times(photos):
    lines = ["a\tone", "a.png\ttwo", "./deep/b.jpg\tthree", "deep/c\t", "elsewhere\tfour", ""]
    (photos / "list.tsv").write_text("\n".join(lines))
    found = captions_of(photos, photos / "list.tsv")
    assert sorted(found.pop("a.png")) == ["one", "two"]
    assert found == {"deep/b.jpg": ["three"], "deep/c.png": [], "d.png": []}


def test_a_manifest_gives_one_or_several_and_its_lines_need_no_order(photos):
    lines = [
        {"path": "d.png", "caption": ["x", " ", "y\nz"]},
        {"path": "a.png"},
        {"path": "deep/b.jpg", "caption": "w"},
    ]
    manifest = photos / "list.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    found = captions_of(manifest, "manifest", prefix="a photo")
    assert found["d.png"] == ["a photo. x", "a photo. y z"]
    assert found["a.png"] == [] and found["deep/b.jpg"] == ["a photo. w"]
    (photos / "a.txt").write_text("beside")
    assert captions_of(manifest, "sidecar")["a.png"] == ["beside"]


def test_lists_and_captions_that_cannot_be_used_are_explained(photos):
    path = photos / "list.tsv"
    for text, message in (
        (b"a cat", r"list\.tsv:1: expected name<TAB>caption"),
        (b"nothing\tx", r"none of 4 images has a caption.*looked for names relative to"),
    ):
        path.write_bytes(text)
        refused(message, captions_of, photos, path)
    refused("none of 4 images has a caption", TrainImageDataset, photos, 8, captions="sidecar")
    refused("it is a folder; use 'sidecar'", TrainImageDataset, photos, 8, captions="manifest")
    refused("'sidecars': there is no such file", TrainImageDataset, photos, 8, captions="sidecars")
    manifest = photos / "list.jsonl"
    manifest.write_text('{"path": "a.png", "caption": ["x", 3]}')
    refused("none of 1 images has a caption", TrainImageDataset, manifest, 8, captions="manifest")


def test_which_caption_is_picked_follows_seed_and_position_alone():
    table = CaptionTable([["a", "b", "c"], [], ["d"]])
    picks = [table.pick(0, position, seed=1) for position in range(600)]
    assert picks == [CaptionTable([["a", "b", "c"]]).pick(0, k, seed=1) for k in range(600)]
    assert picks != [table.pick(0, position, seed=2) for position in range(600)]
    counts = collections.Counter(picks)
    assert all(150 < counts[caption] < 250 for caption in "abc")
    assert table.pick(1, 5, 1) == "" and table.choose(1, 5, 1) is None
    assert table.pick(2, 5, 1) == "d" and table.without().tolist() == [1]
    assert CaptionTable([["a cat"], [""]], "oil").all(0) == ["oil. a cat"]
    assert CaptionTable([[""]], "oil").all(0) == ["oil"]


def test_a_table_is_as_small_as_its_text():
    """Millions of strings would cost each worker its own copy."""
    table = CaptionTable([f"caption {i % 10}"] for i in range(100_000))
    assert len(pickle.dumps(table)) < 100_000 * (len("caption 0") + 16) + 1000
    assert not any(isinstance(value, list | dict) for value in vars(table).values())
    assert table.all(99_999) == ["caption 9"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_captions_follow_their_images_into_the_batch(photos, num_workers):
    for name in ("a", "deep/b", "deep/c"):
        (photos / f"{name}.txt").write_text(name)
    dataset = TrainImageDataset(photos, 10, captions="sidecar", augment=False)
    truth = {dataset[k]["image"].numpy().tobytes(): dataset[k]["caption"] for k in range(4)}
    plain = TrainImageDataset(photos, 10)
    assert not plain.has_captions and "caption" not in plain.read_batch([0])
    assert dataset.has_captions and sorted(truth.values()) == ["", "a", "deep/b", "deep/c"]
    (batch,) = draw(TrainLoader(dataset, batch_size=8, options=read_by(num_workers)))
    (photos / "deep" / "c.png").write_bytes(b"")  # a stand-in brings its own caption
    broken = TrainImageDataset(photos, 10, captions="sidecar", augment=False)
    stood_in = next(TrainLoader(broken, batch_size=12, options=read_by(0)))
    assert "deep/c" in batch["caption"] and "deep/c" not in stood_in["caption"]
    for some in (batch, stood_in):
        for image, caption in zip(some["image"], some["caption"], strict=True):
            assert truth[image.numpy().tobytes()] == caption


def test_indexed_images_keep_all_and_their_fingerprint_follows(photos):
    (photos / "a.txt").write_text("one\ntwo")
    (photos / "d.txt").write_text("three")
    images = IndexedImages(photos, 8, Labels(), Captions("sidecar"))
    found = {text["name"]: text["caption"] for text in map(images.text, range(4))}
    expected = {"a.png": ["one", "two"], "d.png": "three", "deep/b.jpg": None, "deep/c.png": None}
    assert found == expected
    (photos / "d.txt").write_text("four")
    changed = IndexedImages(photos, 8, Labels(), Captions("sidecar"))
    assert images.fingerprint() != changed.fingerprint()


def test_shapes_bring_captions_of_their_pictures():
    dataset = ShapesDataset(16, prefix="a drawing")
    captions = [f"a drawing. {dataset.caption(dataset.index(k))}" for k in (0, 5)]
    assert dataset.has_captions and dataset.read_batch([0, 5])["caption"] == captions
