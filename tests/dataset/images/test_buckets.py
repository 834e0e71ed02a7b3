from collections import Counter

import numpy as np
import pytest
from PIL import Image

from tests.dataset.reading import read_by
from tests.dataset.shard_files import open_set, png, write_shards
from tests.refusals import refused
from wfimagevae.dataset import BucketOrder, CropDataset, CropRules, ShardOrder, TrainLoader
from wfimagevae.dataset.images import image_sets
from wfimagevae.dataset.images.buckets import assign_buckets, bucket_sizes
from wfimagevae.dataset.images.image_sets import ImageParts, measured_sizes, open_folder
from wfimagevae.dataset.images.index import index_images
from wfimagevae.dataset.options import StreamOptions, VaeDataOptions
from wfimagevae.dataset.order import ShuffledOrder

# Three shapes near the area of a 32 px square; counts that no batch size divides.
SHAPES = {(32, 32): 11, (64, 16): 5, (20, 52): 1}


class Flags(VaeDataOptions, StreamOptions):
    """What buckets depend on."""


def rules(resolution, multiple=8, reduced=(), crop="center"):
    buckets = {"aspect_buckets": multiple, "reduced_min_sizes": list(reduced)}
    return Flags(image_path="x", resolution=resolution, train_crop=crop, **buckets)


def make(counts, batch_size, seed=1):
    """An order of buckets with the sizes 8, 16, ... and so many images each."""
    ends = np.cumsum(counts)
    buckets = {
        (8 * (i + 1), 8): np.arange(end - count, end)
        for i, (count, end) in enumerate(zip(counts, ends, strict=True))
    }
    return BucketOrder(buckets, batch_size, seed, lambda m: ShuffledOrder(len(m), seed))


@pytest.fixture
def folder(tmp_path):
    """Images of `SHAPES`; image i has the gray value 10 i."""
    folder = tmp_path / "images"
    folder.mkdir()
    shapes = [shape for shape, count in SHAPES.items() for _ in range(count)]
    for i, shape in enumerate(shapes):
        Image.new("RGB", shape, (10 * i,) * 3).save(folder / f"{i:02d}.png")
    return folder


def bucketed(folder, batch_size=2, crop="center", **flags):
    images = index_images(folder)
    buckets = assign_buckets(measured_sizes(images), rules(32, crop=crop, **flags), "test")
    order = BucketOrder(buckets, batch_size, 1, lambda m: ShuffledOrder(len(m), 1))
    return CropDataset(images, CropRules(32, crop), 1, order)


@pytest.mark.parametrize("counts", [(11, 5, 1), (3, 3), (1, 1, 1, 1), (40, 7, 2, 9), (6,)])
@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_each_block_is_of_one_bucket_and_nothing_is_dropped_or_early(counts, batch_size):
    order = make(counts, batch_size)
    total = sum(counts)
    sizes = [order.size(block * batch_size) for block in range(total)]
    for epoch in range(batch_size + 1):  # every epoch deals each bucket its share
        shares = [epoch * count // batch_size for count in counts]
        assert [sizes[: sum(shares)].count(size) for size in order.sizes] == shares
    # After as many epochs as a batch has samples, every bucket has been cut without remainder.
    streams = {size: [] for size in order.sizes}
    for block in range(total):
        positions = range(block * batch_size, (block + 1) * batch_size)
        (size,) = {order.size(p) for p in positions}
        streams[size] += [order.index(p) for p in positions]
    for size, count in zip(order.sizes, counts, strict=True):
        stream = streams[size]
        assert len(stream) == count * batch_size
        for start in range(0, len(stream), count):
            assert len(set(stream[start : start + count])) == count
    shown = Counter(index for stream in streams.values() for index in stream)
    assert set(shown.values()) == {batch_size} and len(shown) == total


def test_any_position_is_found_without_those_before_it():
    order = make((40, 7, 2, 9), 4)
    known = {p: (order.size(p), order.index(p)) for p in range(0, 3000, 7)}
    for position in (2996, 7, 1400, 0, 2100):
        fresh = make((40, 7, 2, 9), 4)
        assert (fresh.size(position), fresh.index(position)) == known[position]
    blocks = [make((40, 7), 4).size(p) for p in range(0, 188, 4)]
    assert blocks != sorted(blocks)  # buckets alternate
    assert blocks != [make((40, 7), 4, seed=2).size(p) for p in range(0, 188, 4)]


def test_sizes_are_multiples_at_about_the_area_of_the_square():
    rng = np.random.default_rng(0)
    sizes = rng.integers(200, 2000, (500, 2)).astype(np.int32)
    sizes = sizes[sizes.max(axis=1) <= 3 * sizes.min(axis=1)]
    buckets = bucket_sizes(sizes, 256, 32)
    assert (buckets % 32 == 0).all()
    exact = sizes[:, ::-1] * (256 / np.sqrt(sizes.astype(float).prod(axis=1)))[:, None]
    assert np.abs(buckets - exact).max() <= 16
    assert (buckets[sizes[:, 0] == sizes[:, 1]] == 256).all()
    assert buckets[0, 0] != buckets[0, 1] or sizes[0, 0] == sizes[0, 1]
    tall = bucket_sizes(np.array([[300, 900]]), 256, 32)
    assert tall.tolist() == [[448, 160]]  # height, width


def test_batches_have_one_size_and_show_whole_images(folder):
    data = bucketed(folder)
    loader = TrainLoader(data, 2, read_by(2))
    shown = Counter()
    for _ in range(17):  # two epochs of 17 images
        batch = next(loader)
        height, width = batch["image"].shape[2:]
        grays = batch["image"][:, 0].mean(dim=(1, 2)).add(1).mul(127.5).round().div(10).int()
        assert {int(gray) for gray in grays} <= {
            (32, 32): set(range(11)),
            (16, 64): set(range(11, 16)),
            (48, 24): {16},
            (48, 16): {16},
            (56, 24): {16},
        }[height, width]
        shown.update(grays.tolist())
    loader.close()
    assert set(shown.values()) == {2} and len(shown) == 17


def test_what_does_not_go_together_is_refused(folder):
    loader = TrainLoader(bucketed(folder, 2), 3, read_by(0))
    refused("several sizes", list, zip(loader, range(20), strict=False))
    sizes = np.array([[32, 32]])
    for bad in ((64, ()), (8, (12,)), (8, (4,)), (0, (40,))):
        refused("got", assign_buckets, sizes, rules(32, *bad), "test")
    refused("native never does", assign_buckets, sizes, rules(32, 8, (8,), "native"), "test")
    for path in folder.iterdir():
        path.write_bytes(b"")
    refused("test: none of 17 images is readable", bucketed, folder)


@pytest.mark.parametrize("crop", ["native", "resized"])
def test_images_smaller_than_their_bucket_are_left_out_and_counted(folder, caplog, crop):
    Image.new("RGB", (20, 20), (170,) * 3).save(folder / "small.png")
    (folder / "broken.png").write_bytes(b"")
    data = bucketed(folder, crop=crop)
    assert "test: 1 images are unreadable: left out" in caplog.text
    assert "test: 1 images are smaller than their bucket: left out" in caplog.text
    shown = {data.images.name(data._order.index(p))[-9:] for p in range(200)}
    assert "small.png" not in shown and "roken.png" not in shown and len(shown) >= 11
    for block in range(12):
        assert data.read_batch([2 * block, 2 * block + 1])["unreadable"] == []
    assert len(bucketed(folder)) == 18  # center enlarges


def test_long_images_are_cropped_into_buckets_of_four_to_one(tmp_path):
    long = np.array([[30000, 16], [100, 1000], [9000, 3000]])
    assert bucket_sizes(long, 256, 32).tolist() == [[128, 512], [512, 128], [160, 448]]
    assert bucket_sizes(long, 256, 32, 64).tolist() == [[64, 256], [256, 64], [64, 192]]
    for resolution, multiple in ((100, 60), (256, 96), (40, 32)):
        uneven = bucket_sizes(long, resolution, multiple)
        assert (uneven.max(axis=1) <= 4 * uneven.min(axis=1)).all()
    Image.new("RGB", (400, 40), (9,) * 3).save(tmp_path / "long.png")
    for crop in ("native", "resized", "center"):
        data = bucketed(tmp_path, crop=crop)
        assert data.sizes == [(16, 64)]
        batch = data.read_batch([0, 1])
        assert batch["pixels"].shape == (2, 16, 64, 3) and batch["unreadable"] == []


def test_last_image_of_a_bucket_that_cannot_be_read_is_replaced_from_another(folder):
    loader = TrainLoader(bucketed(folder), 2, read_by(0))
    (folder / "16.png").write_bytes(b"gone bad")  # alone in its bucket
    sizes = {tuple(next(loader)["image"].shape[2:]) for _ in range(40)}
    assert len(sizes) == 3 and loader.num_unreadable == 1


def test_reduced_sizes_show_each_image_at_each_scale(folder):
    squares = bucketed(folder, multiple=0, reduced=(16, 8))
    assert len(squares) == 3 * 17
    shown = Counter((squares._order.size(p), squares._order.index(p)) for p in range(3 * 17 * 2))
    assert set(shown.values()) == {2}
    assert {size for size, _ in shown} == {(32, 32), (16, 16), (8, 8)}
    shaped = bucketed(folder, reduced=(16,))
    assert (16, 16) in shaped._order.sizes
    assert len(shaped) == 17 + 11  # the short sides of the others are 16 already


def test_buckets_of_shards_read_the_same_shards_at_a_time(tmp_path):
    def sample(i):
        return {"png": png(3 * i + 1, *((12, 12) if i % 3 else (24, 6)))}

    write_shards(tmp_path, [6] * 12, sample)
    found = open_set(str(tmp_path))
    buckets = assign_buckets(found.sizes, rules(12, 6, crop="resized"), "test")
    assert [len(members) for members in buckets.values()] == [24, 48]
    order = BucketOrder(buckets, 2, 1, lambda m: ShardOrder(found.shard[m], 1, 3, 12))
    epoch = [order.index(p) for p in range(72)]
    assert sorted(epoch) == list(range(72))
    # Groups of three shards have 18 samples; the buckets are in step to within a few blocks.
    for start in range(0, 72, 12):
        assert len(set(found.shard[epoch[start : start + 12]])) <= 6
    assert len(set(found.shard[epoch[:8]])) <= 3


def test_sizes_are_measured_once_and_again_where_files_changed(folder, tmp_path, monkeypatch):
    opened, real = [], image_sets.image_size
    monkeypatch.setattr(image_sets, "image_size", lambda path: opened.append(path) or real(path))
    images = index_images(folder)
    first = measured_sizes(images, tmp_path / "cache")
    assert first[[0, 11, 16]].tolist() == [[32, 32], [64, 16], [20, 52]] and len(opened) == 17
    Image.new("RGB", (9, 7)).save(folder / "03.png")
    Image.new("RGB", (5, 6)).save(folder / "99.png")
    second = measured_sizes(index_images(folder), tmp_path / "cache")
    assert len(opened) == 19
    assert second[[3, 17]].tolist() == [[9, 7], [5, 6]]
    assert (second[[0, 11, 16]] == first[[0, 11, 16]]).all()
    options = ImageParts(sizes=True, index_cache_dir=folder / "cache")
    assert (open_folder(folder, options).sizes == second).all()
    assert not (folder / "cache").exists()  # nothing is written into the user's folder
