import numpy as np
import pytest
import torch
from PIL import Image

from tests.dataset.reading import read_by
from tests.refusals import refused
from wfimagevae.dataset import ShapesDataset, TrainLoader
from wfimagevae.dataset.toy.shapes import COLOURS, SHAPES


def silhouette(pixels):
    """The shape alone, cut out and scaled to 12 x 12: neither place, size nor colour remains."""
    inside = np.abs(pixels.astype(int) - pixels[0, 0]).max(2)
    rows, columns = np.flatnonzero(inside.max(1) > 40), np.flatnonzero(inside.max(0) > 40)
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    image = Image.fromarray((255 * inside / inside.max()).astype(np.uint8)).crop(box)
    return np.asarray(image.resize((12, 12), Image.Resampling.BILINEAR), np.float32).ravel()


def test_batch_has_the_public_form():
    dataset = ShapesDataset(24, num_items=50)
    batch = next(TrainLoader(dataset, batch_size=5, options=read_by(0)))
    assert batch["image"].shape == (5, *dataset.sample_shape)
    assert batch["image"].dtype == torch.float32 and batch["image"].abs().max() <= 1
    assert batch["label"].dtype == torch.int64
    assert batch["label"].tolist() == [dataset.index(p) % 8 for p in range(5)]
    assert (len(dataset), dataset.num_classes, len(COLOURS)) == (50, 8, 8)


def test_pictures_depend_on_seed_and_index_alone_and_each_comes_once_an_epoch():
    one, two = ShapesDataset(16, seed=1), ShapesDataset(16, seed=1, num_items=7, first_index=3)
    assert all(np.array_equal(one.render(i), two.render(i)) for i in range(20))
    other = ShapesDataset(16, seed=2)
    assert not any(np.array_equal(one.render(i), other.render(i)) for i in range(20))
    train = ShapesDataset(16, num_items=40)
    held_out = ShapesDataset(16, num_items=24, first_index=40, augment=False)
    for epoch in range(2):
        assert sorted(train.index(p) for p in range(40 * epoch, 40 * epoch + 40)) == [*range(40)]
    assert sorted(held_out.index(p) for p in range(24)) == list(range(40, 64))


def test_all_pairs_of_shape_and_colour_are_equally_frequent_and_named_in_english():
    dataset = ShapesDataset(16)
    pairs = [dataset.attributes(i) for i in range(128)]
    assert all(pairs.count((shape, colour)) == 2 for shape in SHAPES for colour in COLOURS)
    captions = {dataset.caption(i) for i in range(64)}
    assert len(captions) == 64
    assert {"a red circle", "an orange square", "a blue moon"} <= captions


@pytest.mark.parametrize("size", [8, 32, 45])
def test_paint_is_the_colour_and_the_rest_is_one_gray(size):
    dataset = ShapesDataset(size)
    for index in range(64):
        pixels = dataset.render(index).reshape(-1, 3)
        _, colour = dataset.attributes(index)
        corner = pixels[0]
        assert pixels.shape == (size * size, 3) and corner[0] == corner[1] == corner[2]
        share = np.mean((pixels == corner).all(1))
        assert 0.3 < share < 0.97
        if size >= 32:
            assert (pixels == COLOURS[colour]).all(1).any()


def test_shapes_are_told_apart_at_32_pixels():
    train, test = ShapesDataset(32), ShapesDataset(32, first_index=800)
    known = np.stack([silhouette(train.render(i)) for i in range(800)])
    right = 0
    for index in range(800, 1000):
        nearest = np.abs(known - silhouette(test.render(index))).sum(1).argmin()
        right += nearest % 8 == index % 8
    assert right >= 190


def test_half_are_mirrored_when_augmenting():
    positions = list(range(200))
    plain = ShapesDataset(16, augment=False).read_batch(positions)["pixels"]
    pixels = ShapesDataset(16).read_batch(positions)["pixels"]
    mirrored = (pixels != plain).any(dim=(1, 2, 3))
    assert torch.equal(pixels, torch.where(mirrored[:, None, None, None], plain.flip(2), plain))
    assert 70 < mirrored.sum() < 130


def test_bad_options_are_refused():
    refused("at least 8 pixels", ShapesDataset, 4)
    refused("at least one item", ShapesDataset, num_items=0)
