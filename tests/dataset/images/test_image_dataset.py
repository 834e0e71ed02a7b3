import colorsys
import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tests.refusals import refused
from wfimagevae.dataset import (
    CropDataset,
    CropRules,
    NoReadableImage,
    TrainImageDataset,
    ValidImageDataset,
    collate_images,
)
from wfimagevae.dataset.images.index import index_images
from wfimagevae.dataset.images.transforms import resized_center_crop


def gray(image):
    """Which image of a `flat_folder` this is."""
    value = (image.mean() + 1) * 127.5
    return round((value.item() - 5) / 10)


def spoil(folder, *names):
    for name in names:
        (folder / name).write_bytes(b"not an image")


# Training


def test_sample_depends_on_seed_and_position_alone(noise_folder):
    folder = noise_folder(1, 40, 40)
    one, two, other = (TrainImageDataset(folder, 8, seed=seed) for seed in (1, 1, 2))
    forward = [one[epoch]["image"] for epoch in range(8)]
    assert sum(torch.equal(a, b) for a in forward for b in forward) == 8  # epochs differ
    random.seed(5)
    torch.manual_seed(5)
    assert all(torch.equal(two[p]["image"], forward[p]) for p in reversed(range(8)))
    assert not all(torch.equal(other[p]["image"], forward[p]) for p in range(8))


def test_crop_is_any_piece_of_the_image_or_its_mirror_image(tmp_path):
    ys, xs = np.mgrid[:7, :9].astype(np.uint8)  # pixel (x, y) is (x, y, 0)
    Image.fromarray(np.stack([xs, ys, 0 * xs], axis=2)).save(tmp_path / "a.png")
    crops = TrainImageDataset(tmp_path, 5).read_batch(list(range(500)))["pixels"].int().numpy()
    xs, ys = crops[:, 0, :, 0], crops[:, :, 0, 1]
    assert (crops[..., 0] == xs[:, None]).all() and (crops[..., 1] == ys[:, :, None]).all()
    assert (np.diff(ys) == 1).all() and (np.diff(xs) == np.diff(xs)[:, :1]).all()
    assert set(zip(xs.min(1), ys.min(1), strict=True)) == set(np.ndindex(5, 3))
    assert 200 < (xs[:, 0] > xs[:, -1]).sum() < 300


def test_resize_ratio_zooms_into_squares_of_any_place_and_size_between(tmp_path):
    """Pixel (x, y) of a smooth picture is (2 x, 2 y, 0): a crop tells where it was taken."""
    ys, xs = np.mgrid[:90, :120].astype(np.uint8)
    Image.fromarray(np.stack([2 * xs, 2 * ys, 0 * xs], axis=2)).save(tmp_path / "a.png")
    found, rules = index_images(tmp_path), {"resolution": 32, "train_crop": "resized"}
    dataset = CropDataset(found, CropRules(**rules, resize_ratio=0.25, mirror=False))
    crops = dataset.read_batch(list(range(600)))["pixels"].double().numpy() / 2
    # The span of inner pixels, for the outer ones see the edge of the picture.
    width, height = (
        crops[:, 16, 30, 0] - crops[:, 16, 1, 0],
        crops[:, 30, 16, 1] - crops[:, 1, 16, 1],
    )
    sides = (width + height) / 2 * 32 / 29
    assert np.abs(width - height).max() <= 1.5  # never squashed
    assert 43 < sides.min() < 48 and 87 < sides.max() < 93
    areas = np.sort((sides / 90) ** 2)
    assert np.abs(areas - np.linspace(0.25, 1, 600)).max() < 0.08  # uniform
    lefts, tops = crops[:, 16, 16, 0] - sides / 2, crops[:, 16, 16, 1] - sides / 2
    for free, place in ((120 - sides, lefts), (90 - sides, tops)):
        share = place[free > 20] / free[free > 20]
        assert share.min() < 0.05 and share.max() > 0.95 and abs(share.mean() - 0.5) < 0.05
    # A ratio of 1 draws what it always drew, and nothing is enlarged.
    whole, always = CropDataset(found, CropRules(**rules, resize_ratio=1.0)), CropRules(**rules)
    assert torch.equal(whole[7]["image"], CropDataset(found, always)[7]["image"])
    rules |= {"resolution": 88, "resize_ratio": 0.01, "mirror": False}
    crops = CropDataset(found, CropRules(**rules)).read_batch(list(range(40)))["pixels"].int()
    assert (crops[:, :, 1:, 0] - crops[:, :, :-1, 0] >= 2).float().mean() > 0.97


def test_mirroring_can_be_left_out(noise_folder):
    folder = index_images(noise_folder(1, 8, 8))
    mirrored, plain = (CropDataset(folder, CropRules(8, mirror=mirror)) for mirror in (True, False))
    pictures = {dataset[p]["image"].numpy().tobytes() for dataset in (plain,) for p in range(20)}
    assert len(pictures) == 1 < len({mirrored[p]["image"].numpy().tobytes() for p in range(20)})


def test_colours_change_by_at_most_what_is_asked_and_of_training_images_alone(tmp_path):
    Image.new("RGB", (8, 8), (150, 100, 50)).save(tmp_path / "a.png")
    folder, positions = index_images(tmp_path), list(range(400))

    def drawn(**rules):
        return CropDataset(folder, CropRules(8, **rules)).read_batch(positions)["pixels"].numpy()

    flat = drawn(color_jitter=0.2)
    assert (flat == flat[:, :1, :1]).all()  # an image is changed as a whole
    assert (flat == drawn(color_jitter=0.2)).all()
    hue, saturation, value = np.array([colorsys.rgb_to_hsv(*(p / 255)) for p in flat[:, 0, 0]]).T
    # 150, 100, 50 have hue 1/12 and saturation 2/3. Of one colour, contrast moves all channels
    # alike, towards or from their weighted mean, and so does saturation.
    assert np.ptp(hue[hue < 0.5]) > 0.06 and np.abs((hue - 1 / 12 + 0.5) % 1 - 0.5).max() < 0.09
    assert 150 / 255 * 0.7 < value.min() < 0.5 and 0.68 < value.max() < 150 / 255 * 1.45
    assert saturation.std() > 0.03
    for rules in ({}, {"color_jitter": 0.2, "augment": False}):
        assert (drawn(**rules) == (150, 100, 50)).all()


def test_unreadable_image_is_replaced_by_the_next_in_the_order(tmp_path, flat_folder, noise):
    folder = flat_folder(6)
    whole = TrainImageDataset(folder, resolution=8)
    order = [gray(whole[position]["image"]) for position in range(12)]
    spoil(folder, f"{order[2]:02d}.png", f"{order[3]:02d}.png")
    broken = TrainImageDataset(folder, resolution=8)
    expected = [*order[:2], order[4], order[4], *order[4:6]]
    assert [gray(broken[position]["image"]) for position in range(6)] == expected
    spoil(folder, *(f"{i:02d}.png" for i in range(6) if i != order[5]))
    alone = TrainImageDataset(folder, resolution=8)
    assert {gray(alone[position]["image"]) for position in range(6)} == {order[5]}

    folder = tmp_path / "same"  # the same picture stands in, at the position's own place
    folder.mkdir()
    noise(30, 30).save(folder / "0.png")
    shutil.copy(folder / "0.png", folder / "1.png")
    crops = [TrainImageDataset(folder, resolution=8)[p]["image"] for p in range(8)]
    spoil(folder, "1.png")
    broken = TrainImageDataset(folder, resolution=8)
    assert all(torch.equal(broken[p]["image"], crops[p]) for p in range(8))


def test_unreadable_files_are_tried_and_told_once(flat_folder, monkeypatch):
    folder = flat_folder(4)
    spoil(folder, "01.png")
    opened, original = [], Image.open
    spy = lambda f, *a, **k: opened.append(f.name) or original(f, *a, **k)  # noqa: E731
    monkeypatch.setattr(Image, "open", spy)
    dataset = TrainImageDataset(folder, resolution=8)
    told = [entry for position in range(20) for entry in dataset[position]["unreadable"]]
    assert [path for path, _ in told] == [str(folder / "01.png")]
    assert "not a JPEG" in told[0][1]
    assert opened.count(str(folder / "01.png")) == 1


def test_nothing_readable_is_an_error_with_examples_after_a_thousand_at_most(flat_folder, tmp_path):
    dataset = TrainImageDataset(flat_folder(5), resolution=13)
    for _ in range(2):  # what failed once is remembered
        words = r"none of 5 .*00\.png \(too small: 12x12"
        refused(words, lambda: dataset[3], error=NoReadableImage)
    (tmp_path / "empty").mkdir()
    for i in range(1500):
        (tmp_path / "empty" / f"{i}.png").touch()
    dataset = TrainImageDataset(tmp_path / "empty", resolution=8)
    refused("none of 1000 images", lambda: dataset[0], error=NoReadableImage)


# Validation


def test_validation_is_sorted_resized_and_centred(tmp_path, natural):
    (tmp_path / "b").mkdir()
    natural(60, 40).save(tmp_path / "b" / "1.png")
    natural(40, 60, seed=1).save(tmp_path / "a.png")
    dataset = ValidImageDataset(tmp_path, resolution=20, crop_size=16)
    assert dataset.paths == ["a.png", "b/1.png"]
    sample = dataset[1]
    expected = natural(60, 40).resize((30, 20), Image.Resampling.BICUBIC).crop((7, 2, 23, 18))
    pixels = torch.from_numpy(np.array(expected)).permute(2, 0, 1)
    assert torch.equal(((sample["image"] + 1) * 127.5).round().byte(), pixels)
    assert (sample["path"], sample["error"]) == ("b/1.png", None)


def test_crop_size_defaults_to_the_resolution_and_both_to_the_native_size(tmp_path, noise):
    noise(30, 22).save(tmp_path / "a.png")
    sizes = {(10, None): (10, 10), (40, None): (40, 40), (None, 20): (20, 20)}
    for asked, size in (sizes | {(None, None): (22, 30)}).items():
        assert ValidImageDataset(tmp_path, *asked)[0]["image"].shape == (3, *size)
    assert "too small" in ValidImageDataset(tmp_path, crop_size=24)[0]["error"]


def test_subset_is_evenly_spaced(flat_folder):
    folder = flat_folder(10)
    paths = [f"{i:02d}.png" for i in range(10)]
    assert ValidImageDataset(folder, 8, subset_size=4).paths == [paths[i] for i in (0, 2, 5, 7)]
    for everything in (0, 10, 99):
        assert ValidImageDataset(folder, 8, subset_size=everything).paths == paths


def test_unreadable_images_are_listed_not_replaced(flat_folder):
    folder = flat_folder(3)
    spoil(folder, "01.png")
    dataset = ValidImageDataset(folder, resolution=8)
    batch = collate_images([dataset[i] for i in range(3)])
    assert batch["path"] == ["00.png", "02.png"]
    assert [gray(image) for image in batch["image"]] == [0, 2]
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert [path for path, _ in batch["unreadable"]] == ["01.png"]
    assert collate_images([dataset[1]])["image"] is None


# Crops of class-conditional models, and data held out


def test_center_crop_is_the_resized_middle_mirrored_half_of_the_time(noise_folder, noise):
    folder = noise_folder(1, 40, 24)
    expected = torch.from_numpy(resized_center_crop(noise(40, 24), 10))
    dataset = TrainImageDataset(folder, resolution=10, train_crop="center")
    crops = dataset.read_batch(list(range(100)))["pixels"]
    plain = [torch.equal(crop, expected) for crop in crops]
    assert 30 < sum(plain) < 70
    assert all(p or torch.equal(c, expected.flip(1)) for p, c in zip(plain, crops, strict=True))
    small = TrainImageDataset(folder, resolution=50, train_crop="center")
    assert small[0]["image"].shape == (3, 50, 50)  # enlarged


@pytest.mark.parametrize("train_crop", ["native", "resized", "center"])
def test_without_augmentation_an_image_gives_one_crop_its_middle(tmp_path, natural, train_crop):
    natural(40, 20).save(tmp_path / "a.png")
    dataset = TrainImageDataset(tmp_path, 10, train_crop=train_crop, augment=False)
    crops = dataset.read_batch(list(range(20)))["pixels"]
    assert (crops == crops[0]).all()
    if train_crop == "native":
        assert np.array_equal(crops[0], np.array(natural(40, 20))[5:15, 15:25])
    else:
        whole = np.array(natural(40, 20).resize((20, 10), Image.Resampling.BICUBIC))
        assert np.abs(crops[0].numpy().astype(int) - whole[:, 5:15]).mean() < 4


def test_bad_options_are_refused(flat_folder):
    folder = flat_folder(1)
    refused("a whole number of at least 1", TrainImageDataset, folder, 0)
    refused("'native', 'resized' or 'center'", TrainImageDataset, folder, 8, train_crop="centre")
    refused("does not fit", ValidImageDataset, folder, 8, 9)
