import json

import pytest
import torch

from tests.dataset.conftest import draw
from tests.dataset.reading import read_by
from tests.refusals import refused
from wfimagevae.dataset import IndexedImages, Labels, TrainImageDataset, TrainLoader


@pytest.fixture
def classes(noise_files):
    """A folder with two images of a cat, one of them deep, and three of a dog."""
    return noise_files("dog/0.png", "dog/1.png", "dog/2.png", "cat/0.png", "cat/deep/1.png")


@pytest.fixture
def manifest(noise_files):
    """Maker of a manifest whose line i has the given label; None leaves the field out."""

    def make(*labels):
        names = [f"{9 - i}.png" for i in range(len(labels))]  # lines are in no sorted order
        fields = [{} if label is None else {"label": label} for label in labels]
        lines = [{"path": name} | more for name, more in zip(names, fields, strict=True)]
        path = noise_files(*names) / "list.jsonl"
        path.write_text("\n".join(map(json.dumps, lines)))
        return path

    return make


def pictures(dataset, count):
    """The different pictures, each with its label."""
    samples = map(dataset.__getitem__, range(count))
    return {(sample["image"].numpy().tobytes(), int(sample["label"])) for sample in samples}


def test_class_is_the_first_folder_in_sorted_order(classes):
    images = IndexedImages(classes, 8, Labels("folder"))
    named = {images.text(i)["name"]: images.labels[i] for i in range(len(images))}
    assert images.class_names == ["cat", "dog"]
    cats = {"cat/0.png": 0, "cat/deep/1.png": 0}
    assert named == cats | {f"dog/{i}.png": 1 for i in range(3)}
    held_out = IndexedImages(classes, 8, Labels("folder", ["dog", "cat"]))
    assert held_out.labels.tolist() == [1, 1, 0, 0, 0]
    assert held_out.class_names == ["dog", "cat"]
    (classes / ".cache").mkdir()
    (classes / "LICENSE").touch()  # what is hidden or no image makes no class
    assert TrainImageDataset(classes, 10, labels="folder").class_names == ["cat", "dog"]
    unlabelled = TrainImageDataset(classes, 10)
    assert (unlabelled.num_classes, unlabelled.class_names) == (0, [])
    assert "label" not in unlabelled.read_batch([0, 1])


def test_folders_that_are_no_classes_are_named(classes, noise):
    for names, message in (
        (["cat"], "training has not: dog"),
        (["bird", "cat", "dog"], "no image in class folder bird"),
    ):
        refused(message, TrainImageDataset, classes, 10, labels=Labels("folder", names))
    (classes / "bird").mkdir()
    refused("no image in class folder bird", TrainImageDataset, classes, 10, labels="folder")
    noise(10, 10).save(classes / "stray.png")
    refused(r"1 images lie outside .* stray\.png", TrainImageDataset, classes, 10, labels="folder")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_labels_follow_their_images_into_the_batch(classes, num_workers):
    dataset = TrainImageDataset(classes, 10, labels="folder", augment=False)
    (batch,) = draw(TrainLoader(dataset, batch_size=5, options=read_by(num_workers)))
    assert set(batch) == {"image", "label", "position", "unreadable"}
    assert batch["label"].dtype == torch.int64
    assert sorted(batch["label"].tolist()) == [0, 0, 1, 1, 1]
    truth, images = pictures(dataset, 5), [image.numpy().tobytes() for image in batch["image"]]
    assert truth == set(zip(images, batch["label"].tolist(), strict=True))
    (classes / "dog" / "1.png").write_bytes(b"")  # a stand-in brings its own label
    broken = pictures(TrainImageDataset(classes, 10, labels="folder", augment=False), 40)
    assert len(truth) == 5 and len(broken) == 4 and broken < truth
    assert dataset.num_classes == 2 and dataset.sample_shape == (3, 10, 10)


def test_manifest_labels_follow_their_lines_and_names_are_sorted(manifest, caplog):
    images = IndexedImages(manifest(2, 0, 2), 8, Labels("manifest"))
    named = {images.text(i)["name"]: images.labels[i] for i in range(3)}
    assert named == {"9.png": 2, "8.png": 0, "7.png": 2}
    assert images.class_names == ["0", "1", "2"] and "no image of class 1" in caplog.text
    path = manifest("dog", "cat", "dog")
    images = IndexedImages(path, 8, Labels("manifest"))
    assert images.class_names == ["cat", "dog"] and images.labels.tolist() == [1, 0, 1]
    held_out = IndexedImages(path, 8, Labels("manifest", ["dog", "bird", "cat"]))
    assert held_out.labels.tolist() == [0, 2, 0]


def test_bad_lines_and_labels_of_the_wrong_kind_are_named(classes, manifest):
    for labels, names, message in (
        ((0, None), None, r"jsonl:2: expected a label"),
        ((0, 1.5), None, r"jsonl:2: expected a label"),
        ((True,), None, r"jsonl:1: expected a label"),
        ((0, -1), None, r"jsonl:2: label -1 is out of range: use 0 to 0"),
        ((0, 10**9), None, r"jsonl:2: label 1000000000 is out of range"),
        ((0, 1, 2), ["a", "b"], r"jsonl:3: label 2 is out of range: use 0 to 1"),
        (("a", "c"), ["a", "b"], r"jsonl:2: label 'c' is out of range: the classes are a, b"),
        ((0, "a"), None, r"one kind"),
    ):
        kind = Labels("manifest", names)
        refused(message, TrainImageDataset, manifest(*labels), 8, labels=kind)
    refused("it is a folder; use 'folder'", TrainImageDataset, classes, 8, labels="manifest")
    refused("it is a manifest; use 'manifest'", TrainImageDataset, manifest(0), 8, labels="folder")
    refused("'none', 'folder' or 'manifest'", TrainImageDataset, classes, 8, labels="folders")
