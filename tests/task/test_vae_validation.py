"""Validation of image VAEs: crops of any size it can measure, and what it refuses beforehand."""

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from tests.task.training import refused, rows
from wfimagevae.dataset import ValidImageDataset
from wfimagevae.generate.autoencoders import load_autoencoder
from wfimagevae.task.vae import VaeTask, check_sizes
from wfimagevae.task.vae_options import VaeOptions

# Images of 48 px suffice for a discriminator of four layers.
DEEP = {"resolution": 48, "disc_num_layers": 4, "disc_start": 0, "eval_steps": 1}


def test_crops_that_are_no_multiples_of_the_factor_are_measured_whole(workplace):
    sizes = {"eval_resolution": 30, "eval_crop_size": 27}
    folder = workplace.train("odd", 2, eval_steps=2, disc_start=0, **sizes)
    vae = load_autoencoder(f"WFVAE2Image:{folder}/checkpoint-2.ckpt")
    dataset = ValidImageDataset(workplace.folder / "held_out", *sizes.values())
    held_out = [sample["image"] for sample in dataset]
    pairs = [(image.numpy(), vae.reconstruct(image[None])[0].numpy()) for image in held_out]
    psnrs = [peak_signal_noise_ratio(x, y, data_range=2) for x, y in pairs]
    (row,) = rows(folder / "validation.jsonl")
    assert row["val/psnr"] == pytest.approx(sum(psnrs) / len(psnrs), rel=1e-5)
    (picture, *_) = (folder / "val_images" / "reconstructed").rglob("*.png")
    assert Image.open(picture).size == (27, 27)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"eval_steps": 1, "eval_crop_size": 8}, "_size 8 is too small for SSIM, which needs 11"),
        ({"eval_crop_size": 40}, "at most --eval_resolution, got 40 and 32"),
        (DEEP, "--eval_crop_size 32 is too small for the discriminator, which needs 48 px"),
        (DEEP, "train with --disc_num_layers 3 or --disable_patch_score_vis"),
    ],
)
def test_crops_that_cannot_be_measured_are_refused_before_the_first_step(workplace, options, words):
    with refused(words):
        workplace.train("refused", 1, **options)
    assert not list(workplace.folder.glob("results/refused-*/*"))


def test_without_maps_of_scores_crops_need_not_suit_the_discriminator(workplace):
    folder = workplace.train("no-maps", 1, **DEEP, disable_patch_score_vis=True)
    assert (folder / "validation.jsonl").exists()
    folder = workplace.train("no-validation", 1, **DEEP | {"eval_steps": 0})
    assert (folder / "checkpoint-1.ckpt").exists()


def test_lpips_needs_sixteen_pixels():
    loss = torch.nn.Module()
    loss.discriminator = torch.nn.Module()
    vae = SimpleNamespace(spatial_factor=8)
    paths = {"image_path": "x", "eval_image_path": "y"}
    options = VaeOptions(**paths, disc_weight=0, eval_resolution=64, eval_crop_size=16)
    check_sizes(options, [(16, 16)], vae, loss)
    with refused("bucket of 16 x 8 is too small for LPIPS, which needs 16"):
        check_sizes(options, [(16, 8)], vae, loss)
    with refused("--eval_crop_size 15 is too small for LPIPS"):
        check_sizes(options.changed(eval_crop_size=15), [(16, 16)], vae, loss)


def test_a_run_that_never_validates_needs_no_held_out_images(workplace):
    folder = workplace.train("alone", 2, eval_image_path=None)
    assert (folder / "checkpoint-2.ckpt").exists()
    with pytest.raises(ValueError, match="give --eval_image_path to validate on, or --eval_steps"):
        workplace.train("wants", 2, eval_image_path=None, eval_steps=2)


def test_one_held_out_image_at_least_must_be_readable(workplace, tmp_path):
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_bytes(b"no image")
    options = {"eval_image_path": tmp_path, "disc_weight": 0}
    with pytest.raises(ValueError, match=r"--eval_image_path: none of 2 .* b\.jpg"):
        workplace.train("unreadable", 1, eval_steps=1, **options)
    assert workplace.train("unread", 1, eval_steps=0, **options)
    Image.new("RGB", (40, 40)).save(tmp_path / "c.png")
    folder = workplace.train("one-readable", 1, eval_steps=1, **options)
    assert (folder / "validation.jsonl").exists()


@pytest.mark.parametrize(
    ("figures", "score"),
    [
        ({"val/psnr": 30.0, "val_ema/psnr": 20.0}, 20.0),
        ({"val/psnr": 20.0, "val_ema/psnr": 30.0}, 30.0),
        ({"val/psnr": 25.0}, 25.0),
    ],
)
def test_the_best_checkpoint_is_judged_by_the_weights_that_load_from_it(figures, score):
    task = VaeTask(VaeOptions(image_path="x", disc_start=0), [], None, Mock(), None)
    assert task.score(figures) == score
