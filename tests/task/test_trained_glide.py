"""GLIDE models that were trained a little draw what captions say: minutes, so marked slow."""

import json

import pytest
import torch

from tests.task.test_glide import GlidePlace
from wfimagevae.dataset import ShapesDataset
from wfimagevae.generate.generator_files import load_generator
from wfimagevae.generate.options import SamplingOptions
from wfimagevae.generate.subjects import Subject
from wfimagevae.pictures.pixels import to_uint8
from wfimagevae.pictures.writer import save_image

CPU = torch.device("cpu")
RECIPE = {"batch_size": 32, "lr": 2e-3, "lr_schedule": "cosine", "warmup_steps": 50}
RECIPE |= {"vlb_weight": 0, "min_snr_gamma": 1, "cfg_dropout_prob": 0.1, "ema_decay": 0.98}
SIZES = {"head_width": 32, "text_width": 64, "dropout": 0.0, "text_length": 16}


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_right_one_of_eight_captioned_shapes_is_drawn(tmp_path, two_threads):
    """Sampled by ddim in 30 steps, from eight noises each; chance is one in eight."""
    place, folder, captions = GlidePlace(tmp_path), tmp_path / "eight", []
    config = json.loads((tmp_path / "base.json").read_text())
    (tmp_path / "base.json").write_text(json.dumps(config | SIZES | {"schedule": "scaled_linear"}))
    dataset, images = ShapesDataset(16, 3, augment=False), []
    for i in range(8):
        batch = dataset.to_inputs(dataset.read_batch([9 * i]), CPU)  # of other shapes and colours
        save_image(folder / f"{i}.png", to_uint8(batch["image"][0]))
        (folder / f"{i}.txt").write_text(batch["caption"][0])
        images.append(batch["image"][0])
        captions.append(batch["caption"][0])
    assert len({*captions}) == 8
    data = {"dataset": "images", "data_path": folder, "no_random_hflip": True}
    generator = load_generator(str(place.train("eight", 1200, **data, **RECIPE)), CPU)
    right, options = 0, SamplingOptions(sampler="ddim", steps=30, guidance_scale=2.0)
    for index in range(8):
        drawn = generator.draw([Subject(index, None, text) for text in captions], options)
        distances = (drawn[:, None] - torch.stack(images)).square().flatten(2).mean(2)
        right += (distances.argmin(1) == torch.arange(8)).sum().item()
    assert right >= 0.8 * 64
