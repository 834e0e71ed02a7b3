import errno
import io
import os
import pickle
from collections import Counter
from itertools import islice
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from tests.dataset.conftest import draw
from tests.dataset.reading import read_by
from tests.dataset.shard_files import (
    as_json,
    dataset,
    numbers,
    open_set,
    png,
    write_shards,
    write_tar,
)
from tests.refusals import refused
from wfimagevae.dataset import DataError, ShardOrder, TrainLoader
from wfimagevae.dataset.images.decode import open_rgb


def seen(batches):
    return [number for batch in batches for number in numbers(batch)]


def test_samples_are_those_of_the_webdataset_library(tmp_path):
    write_shards(tmp_path, [3, 1, 4], lambda i: {"json": as_json(n=i), "extra.npy": b"no"})
    urls = [str(path) for path in sorted(tmp_path.iterdir())]
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False))
    found = open_set(str(tmp_path), with_captions=True, with_labels=True, with_records=True)
    assert len(found) == len(theirs) == 8
    for i, sample in enumerate(theirs):
        assert found.images.key(i) == sample["__key__"]
        assert found.images.content(i) == sample["png"]
        assert found.captions.all(i) == [sample["txt"].decode()]
        assert found.labels[0][i] == int(sample["cls"])
        assert found.record(i) == {"n": i}
    assert found.images.name(4) == f"{tmp_path / 's-002.tar'}::00004"


def test_keys_end_at_the_first_dot_and_folders_belong_to_them(tmp_path):
    images = dict.fromkeys(("./x.y/one.SEG.PNG", "x/two.jpg", "__meta__/z.png"), png(1))
    members = images | dict.fromkeys(("./x.y/one.txt", "noext"), b"text")
    write_tar(tmp_path / "a.tar", dict(sorted(members.items())))
    theirs = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    found = open_set(str(tmp_path / "a.tar"), image_key="jpg;seg.png")
    assert [found.images.key(i) for i in range(2)] == [s["__key__"] for s in theirs]
    assert found.images.content(0) == theirs[0]["seg.png"]
    assert found.images.relative(0) == "a/x.y/one.png"
    write_shards(tmp_path / "own", [2], lambda i: {"png": None, "pic": png(1), "alt": b"words"})
    own = {"image_key": "pic", "caption_key": "alt", "with_captions": True}
    custom = open_set(str(tmp_path / "own"), **own)
    assert custom.sizes.tolist() == [[12, 12]] * 2 and custom.captions.all(1) == ["words"]


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 0), (3, 2)])
def test_ranks_and_workers_together_read_every_sample_once_an_epoch(tmp_path, ranks, workers):
    write_shards(tmp_path, [5, 1, 0, 7, 4, 3, 4])  # 24, and an empty shard
    data = dataset(open_set(str(tmp_path)))
    half = 24 // ranks  # an epoch is a whole number of steps of all ranks
    loaders = [
        TrainLoader(data, 2, read_by(workers), rank=r, world_size=ranks) for r in range(ranks)
    ]
    shares = [seen(draw(loader, half)) for loader in loaders]  # two epochs, two samples a step
    epochs = [[number for share in shares for number in share[i : i + half]] for i in (0, half)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(24))] * 2
    assert epochs[0] != epochs[1]


def test_order_stays_in_a_few_shards_at_a_time_and_shuffles_inside():
    files = np.repeat(np.arange(10), 20)
    order = ShardOrder(files, seed=1, group_size=3)
    epoch = [order.index(p) for p in range(200)]
    assert sorted(epoch) == list(range(200))
    for start, stop in ((0, 60), (60, 120), (120, 180), (180, 200)):
        group = epoch[start:stop]
        assert len({files[i] for i in group}) == (stop - start) // 20
        assert len({files[i] for i in group[:12]}) == (3 if stop <= 180 else 1)
    assert len({files[i] for i in epoch[180:]}) == 1
    other = ShardOrder(files, seed=2, group_size=3)
    assert [other.index(p) for p in range(200)] != epoch


@pytest.mark.parametrize(("before", "workers"), [(0, 0), (1, 2), (5, 0), (8, 1)])
def test_resuming_anywhere_equals_never_stopping(tmp_path, before, workers):
    write_shards(tmp_path, [5, 6, 2])

    def loader(num_workers, **options):
        return TrainLoader(dataset(open_set(str(tmp_path)), **options), 3, read_by(num_workers))

    whole, first, second = draw(loader(0), 10), loader(workers), loader(workers)
    head = list(islice(first, before))
    state = first.state_dict()
    first.close()
    second.load_state_dict(state)
    other = loader(0, group_size=1)
    refused("wds_shuffle_shards was 2, is 1", other.load_state_dict, state)
    images = [batch["image"] for batch in [*head, *draw(second, 10 - before)]]
    assert torch.equal(torch.cat(images), torch.cat([batch["image"] for batch in whole]))


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_samples_are_replaced_and_counted_and_end_no_worker(tmp_path, workers):
    broken = {2: b"", 5: b"no image", 9: png(1)[:40]}
    write_shards(tmp_path, [6, 6], lambda i: {"png": broken[i]} if i in broken else {})
    loader = TrainLoader(dataset(open_set(str(tmp_path))), 4, read_by(workers))
    batches = draw(loader, 9)
    shown = Counter(seen(batches))
    assert not shown.keys() & broken.keys() and sum(shown.values()) == 36
    assert loader.num_unreadable == 3
    told = [name for batch in batches for name, _ in batch["unreadable"]]
    assert sorted(name.rpartition("::")[2] for name in told) == ["00002", "00005", "00009"]


def test_shard_that_changes_or_fails_under_a_run_is_named(tmp_path, monkeypatch):
    (path,) = write_shards(tmp_path, [3])
    write_shards(tmp_path / "whole", [3])
    images = open_set(str(tmp_path)).images
    assert pickle.loads(pickle.dumps(images)).content(2) == images.content(2)
    images = pickle.loads(pickle.dumps(images))  # with no file open
    os.truncate(path, path.stat().st_size + 512)
    refused("changed since", images.file, 0, error=DataError)
    images = open_set(str(tmp_path)).images
    open_rgb(images.file(0))
    os.truncate(path, 600)
    refused("s-000.tar was cut since", images.file, 2, error=DataError)  # open already
    images = open_set(str(tmp_path / "whole")).images
    too_many = OSError(errno.EMFILE, "Too many open files")
    monkeypatch.setattr(os, "open", Mock(side_effect=too_many))
    refused(r"cannot open shard .*s-000.tar: Too many open files", images.file, 0, error=DataError)


def test_captions_and_labels_come_from_json_fields(tmp_path):
    def sample(i):
        fields = {"prompt": [f"one {i}", f"two {i}"] if i else "one 0", "label": "ab"[i % 2]}
        return {"json": as_json(**fields), "txt": None, "cls": None}

    write_shards(tmp_path, [4], sample)
    words = {"caption_key": "json:prompt", "label_key": "json:label", "caption_prefix": "photo"}
    found = open_set(str(tmp_path), with_captions=True, with_labels=True, **words)
    assert found.captions.all(0) == ["photo. one 0"]
    assert found.captions.all(3) == ["photo. one 3", "photo. two 3"]
    assert found.labels[0].tolist() == [0, 1, 0, 1] and found.labels[1] == ["a", "b"]
    batch = dataset(found).read_batch([0, 1])
    assert all(text.startswith("photo. ") for text in batch["caption"])
    assert batch["label"].dtype == torch.int64


def test_keys_and_labels_that_mean_nothing_are_errors(tmp_path):
    write_shards(tmp_path, [3], lambda i: {"cls": -1 if i == 1 else i})
    for options, message in (
        ({"image_key": "tiff"}, r"image of type tiff: its members are of type cls, png, txt"),
        ({"label_key": "json:label", "with_labels": True}, "class under json:label"),
        ({"with_labels": True}, r"s-000.tar::00001: label -1 is out of range: use 0 to"),
    ):
        refused(message, open_set, str(tmp_path), **options)


def test_samples_without_an_image_of_the_types_are_counted_and_their_types_told(tmp_path, caplog):
    write_shards(tmp_path, [5], lambda i: {"png": None, "bmp": png(1)} if i % 2 else {})
    assert len(open_set(str(tmp_path))) == 3
    assert "left out 2 of 5 samples" in caplog.text and "of type bmp, cls, txt" in caplog.text
    caplog.clear()
    assert len(open_set(str(tmp_path), image_key="png;bmp")) == 5
    assert "left out" not in caplog.text


def test_sizes_are_those_of_the_upright_image(tmp_path):
    turned, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(turned, "JPEG", exif=exif)
    write_shards(tmp_path, [1], lambda i: {"png": None, "jpg": turned.getvalue()})
    found = open_set(str(tmp_path))
    assert found.sizes.tolist() == [[30, 40]]
    assert open_rgb(found.images.file(0)).size == (30, 40)
    assert open_rgb(found.images.file(0), short_side=(20, 10)).size == (15, 20)
