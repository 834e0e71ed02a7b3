import hashlib
import io
import json
import os
from contextlib import closing

import numpy as np
import pytest
import webdataset
from PIL import Image

from scripts import make_webdataset
from tests.dataset.shard_files import open_set
from tests.dataset.shards.test_remote import Server
from tests.images import smooth_image, write_captioned
from tests.refusals import refused
from tests.scripts.flow_exports import command
from wfimagevae.dataset.shards.index import index_shards
from wfimagevae.dataset.shards.write import ShardWriter

KINDS = {"png", "jpg", "webp"}


@pytest.fixture
def photos(tmp_path):
    """Seven photographs of three formats in two classes, with captions beside them."""
    kinds = ("png", "jpg", "webp")
    return write_captioned(tmp_path / "photos", 7, lambda i: (40, 40 + 12 * (i % 3)), kinds)


def make(photos, output, *more):
    words = ("--image_path", photos, "--output_dir", output, "--samples_per_shard", 3, *more)
    return command(make_webdataset, *words)


def read_with_library(folder):
    """Every sample of a folder of shards, by the webdataset library, by key."""
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    return list(webdataset.WebDataset(urls, shardshuffle=False))


def read_with_us(folder):
    """The same through this repository: content, caption lines, class, record."""
    found = open_set(folder, with_captions=True, with_labels=True, with_records=True)
    parts = (found.images.key, found.images.content, found.captions.all)
    parts += (found.labels[0].__getitem__, found.record)
    return [tuple(part(i) for part in parts) for i in range(len(found))]


def as_we_read(sample):
    (kind,) = KINDS & sample.keys()
    lines, record = sample["txt"].decode().splitlines(), json.loads(sample["json"])
    return sample["__key__"], sample[kind], lines, int(sample["cls"]), record


def test_our_shards_and_the_librarys_read_the_same_through_both(photos, tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    assert make(photos, ours, "--labels", "folder", "--captions", "sidecar") == 0
    samples = read_with_library(ours)
    theirs.mkdir()
    with webdataset.ShardWriter(str(theirs / "shard-%06d.tar"), maxcount=3, verbose=0) as writer:
        for sample in samples:
            writer.write({k: v for k, v in sample.items() if k == "__key__" or k[0] != "_"})
    assert len(list(theirs.glob("*.tar"))) == 3
    through_library = [as_we_read(sample) for sample in samples]
    assert [as_we_read(sample) for sample in read_with_library(theirs)] == through_library
    assert read_with_us(ours) == through_library
    assert read_with_us(theirs) == through_library


def test_files_are_kept_as_they_are_with_what_is_known_of_them(photos, tmp_path):
    make(photos, tmp_path / "shards", "--labels", "folder", "--captions", "sidecar")
    samples = read_with_us(tmp_path / "shards")
    assert len(samples) == 7
    for _, content, captions, label, record in samples:
        name = record["name"]
        assert content == (photos / name).read_bytes()
        assert record["class"] == name[0] == "ab"[label]
        number = name.split("p")[1][0]
        assert captions == [f"photo {number}", f"number {number}"]
        with Image.open(photos / name) as image:
            assert (record["width"], record["height"]) == image.size
    names = [record["name"] for *_, record in samples]
    assert names != sorted(names) and sorted(names) == sorted(set(names))
    make(photos, tmp_path / "sorted", "--labels", "folder", "--captions", "sidecar", "--no_shuffle")
    names = [record["name"] for *_, record in read_with_us(tmp_path / "sorted")]
    assert names == sorted(names)
    pictures = [Image.fromarray(smooth_image(40, 40, i)) for i in range(2)]
    path = tmp_path / "cameras" / "phone.jpg"  # cameras put more than one picture inside
    path.parent.mkdir()
    pictures[0].save(path, "MPO", save_all=True, append_images=pictures[1:])
    assert make(path.parent, tmp_path / "more") == 0
    (sample,) = read_with_library(tmp_path / "more")
    assert sample["jpg"] == path.read_bytes()


def test_record_tells_counts_sizes_and_hashes_and_unreadable_images(photos, tmp_path, capsys):
    folder = tmp_path / "shards"
    make(photos, folder, "--labels", "folder")
    record = json.loads((folder / "shards.json").read_text())
    assert record["num_samples"] == 7 and record["class_names"] == ["a", "b"]
    assert [shard["samples"] for shard in record["shards"]] == [3, 3, 1]
    for shard in record["shards"]:
        content = (folder / shard["name"]).read_bytes()
        assert len(content) == shard["bytes"]
        assert hashlib.sha256(content).hexdigest() == shard["sha256"]
        index = (folder / shard["index"]).read_bytes()
        assert hashlib.sha256(index).hexdigest() == shard["index_sha256"]
    assert "7 samples in 3 shards" in capsys.readouterr().out
    whole = (photos / "b" / "p1.jpg").read_bytes()
    (photos / "b" / "p1.jpg").write_bytes(whole[: len(whole) // 2])
    assert make(photos, tmp_path / "fewer") == 1
    told = capsys.readouterr()
    assert "6 samples" in told.out and "p1.jpg: " in told.err
    assert len(read_with_library(tmp_path / "fewer")) == 6


def test_manifest_fields_are_kept(photos, tmp_path):
    manifest, paths = tmp_path / "list.jsonl", ("a/p0.png", "a/p2.webp", "a/p4.jpg")
    facts = [{"similarity": i / 5, "label": 2 * i} for i in range(3)]
    lines = [{"path": f"photos/{path}"} | fact for path, fact in zip(paths, facts, strict=True)]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert make(manifest, tmp_path / "shards", "--labels", "manifest") == 0
    samples = sorted(read_with_library(tmp_path / "shards"), key=lambda sample: sample["__key__"])
    records = [json.loads(sample["json"]) for sample in samples]
    assert [r["similarity"] for r in records] == [0.0, 0.2, 0.4]
    assert all("path" not in r for r in records)
    assert [int(sample["cls"]) for sample in samples] == [0, 2, 4]


def test_large_images_are_shrunk_and_others_encoded_as_asked(photos, tmp_path):
    make(photos, tmp_path / "small", "--resize", 20)
    for sample in read_with_library(tmp_path / "small"):
        (kind,) = KINDS & sample.keys()
        with Image.open(io.BytesIO(sample[kind])) as image:
            assert min(image.size) == 20
            assert image.format.lower() == {"jpg": "jpeg"}.get(kind, kind)
        record = json.loads(sample["json"])
        assert min(record["width"], record["height"]) == 20
    make(photos, tmp_path / "kept", "--resize", 400)
    kept = read_with_library(tmp_path / "kept")
    assert {json.loads(s["json"])["height"] for s in kept} == {40}
    make(photos, tmp_path / "webp", "--format", "webp", "--quality", 90)
    for sample in read_with_library(tmp_path / "webp"):
        name = json.loads(sample["json"])["name"]
        with Image.open(io.BytesIO(sample["webp"])) as image, Image.open(photos / name) as own:
            pair = [np.asarray(x.convert("RGB"), np.float32) for x in (image, own)]
        assert np.abs(pair[0] - pair[1]).mean() < 6


def test_stopped_run_goes_on_and_other_images_are_refused(photos, tmp_path, monkeypatch, capsys):
    whole, folder = tmp_path / "whole", tmp_path / "shards"
    make(photos, whole)
    real = ShardWriter.write

    def failing(self, number, tick):
        if number == 1:
            (self.folder / ".shard-000002.tar.half.tmp").write_bytes(b"half")
            raise KeyboardInterrupt("stopped")
        real(self, number, tick)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "write", failing)
        refused("stopped", make, photos, folder, error=KeyboardInterrupt)
    assert not (folder / "shards.json").exists()
    before = (folder / "shard-000000.tar").stat().st_mtime_ns
    assert make(photos, folder) == 0
    assert (folder / "shard-000000.tar").stat().st_mtime_ns == before
    assert not list(folder.glob(".shard*"))
    for path in whole.glob("*.tar"):
        assert (folder / path.name).read_bytes() == path.read_bytes()
    refused("other images or options", make, photos, folder, "--resize", 20)


def test_remote_shards_with_a_record_are_not_read_to_be_indexed(photos, tmp_path, monkeypatch):
    make(photos, tmp_path / "shards", "--captions", "sidecar", "--labels", "folder")
    with closing(Server(tmp_path / "shards")) as server:
        urls = [f"{server.url}/shard-{i:06d}.tar" for i in range(3)]
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        indexed = index_shards(urls)
        assert sum(len(index) for _, index in indexed) == 7
        assert not [path for path in server.count("GET") if path.endswith(".tar")]
        remote = open_set(f"{server.url}/shard-{{000000..000002}}.tar", with_captions=True)
        local = open_set(tmp_path / "shards", with_captions=True)
        assert remote.images.content(4) == local.images.content(4)
        assert remote.captions.all(4) == local.captions.all(4)
        assert [p for p in server.count("GET") if p.endswith(".tar")] == ["/shard-000001.tar"]


def test_changed_source_is_refused_not_passed_over(photos, tmp_path):
    manifest, line = tmp_path / "list.jsonl", {"path": "photos/a/p0.png", "similarity": 0.1}
    manifest.write_text(json.dumps(line))
    for _ in range(2):  # the second time nothing has changed
        assert make(manifest, tmp_path / "shards") == 0
    manifest.write_text(json.dumps(line | {"similarity": 0.9}))
    refused("images that have changed since", make, manifest, tmp_path / "shards")
    manifest.write_text(json.dumps(line))
    Image.fromarray(smooth_image(40, 40, 99)).save(photos / "a" / "p0.png")
    refused("images that have changed since", make, manifest, tmp_path / "shards")


def test_names_that_are_not_utf_8_and_half_an_emoji_are_kept(photos, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    (photos / "a" / "p0.png").rename(photos / "a" / name)
    (photos / "a" / "p0.txt").rename(photos / "a" / (name[:-3] + "txt"))
    assert make(photos / "a", tmp_path / "named", "--captions", "sidecar") == 0
    named = open_set(tmp_path / "named", with_captions=True, with_records=True)
    assert name in [named.record(i)["name"] for i in range(len(named))]
    manifest = tmp_path / "list.jsonl"
    manifest.write_text('{"path": "photos/b/p1.jpg", "caption": "a", "tag": "\\ud83d"}')
    assert make(manifest, tmp_path / "half", "--captions", "manifest") == 0
    assert open_set(tmp_path / "half", with_records=True).record(0)["tag"] == "\ud83d"


def test_damaged_index_of_a_shard_is_named(photos, tmp_path):
    make(photos, tmp_path / "shards")
    file = tmp_path / "shards" / "shard-000000.index.npz"
    content = bytearray(file.read_bytes())
    packed = content.index(b"written.npy") + 40
    content[packed : packed + 30] = bytes(255 for _ in range(30))
    for damaged in (content, content[:-100]):
        file.write_bytes(damaged)
        words = r"shard-000000\.index\.npz is no index of a shard"
        refused(words, make, photos, tmp_path / "shards")
