from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from tests.eval.conftest import alexnet_weights, no_downloads  # noqa: F401
from tests.images import TINY_MODEL
from tests.running import runner
from tests.scripts.flow_exports import export, export_points, export_text
from wfimagevae.dataset import ValidImageDataset
from wfimagevae.eval.pairs import output_names
from wfimagevae.model import WFVAE2ImageModel
from wfimagevae.pictures.pixels import to_uint8
from wfimagevae.pictures.writer import save_image

ROOT = Path(__file__).resolve().parents[2]
SIDES = {"down": "DownEncoder", "up": "UpDecoder"}


@pytest.fixture(scope="session")
def tiny_vae(tmp_path_factory):
    """A small model with random weights, as a Hugging Face folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    WFVAE2ImageModel.from_config(TINY_MODEL).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def diffusers_vae(tmp_path_factory):
    """A tiny AutoencoderKL with random weights: 4x downsampling, 3 latent channels."""
    torch.manual_seed(0)
    blocks = {f"{side}_block_types": (f"{name}Block2D",) * 3 for side, name in SIDES.items()}
    sizes = {"block_out_channels": (8, 8, 16), "norm_num_groups": 4, "sample_size": 32}
    model = AutoencoderKL(
        latent_channels=3, scaling_factor=0.5, shift_factor=0.25, **sizes, **blocks
    )
    folder = tmp_path_factory.mktemp("diffusers") / "kl"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Five smooth images in two folders, of different sizes and kinds."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    names = ("a/one.jpg", "a/two.png", "b/one.jpeg", "b/deep/three.webp", "four.bmp")
    sizes = ((70, 50), (64, 64), (48, 90), (53, 61), (80, 49))
    for name, size in zip(names, sizes, strict=True):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return folder


@pytest.fixture(scope="session")
def blurred(photos, tmp_path_factory):
    """Each photo at 48 px, down and up again: stands for reconstructions."""
    folder = tmp_path_factory.mktemp("blurred")
    dataset = ValidImageDataset(photos, 48)
    names = output_names(dataset.paths, "png")
    for sample in dataset:
        small = sample["image"][:, 2::6, 2::6]
        large = small.repeat_interleave(6, 1).repeat_interleave(6, 2)
        save_image(folder / names[sample["path"]], to_uint8(large))
    return folder


@pytest.fixture(scope="session")
def points(tmp_path_factory):
    """An exported flow of points."""
    return export_points(tmp_path_factory.mktemp("points") / "flow")


@pytest.fixture(scope="session")
def pixels(tmp_path_factory):
    """An exported flow of 16 x 16 px images of two classes."""
    facts = {"space": "pixel", "class_names": ["circle", "square"]}
    sizes = {"input_size": 16, "in_channels": 3, "num_classes": 2, "depth": 1}
    return export(tmp_path_factory.mktemp("pixels") / "flow", facts, "DiT-S/8", **sizes)


@pytest.fixture(scope="session")
def text_flow(tmp_path_factory):
    """An exported flow of 16 x 16 px images that takes text."""
    return export_text(tmp_path_factory.mktemp("texts") / "flow", depth=2)


@pytest.fixture(scope="session")
def run_script():
    """Runs a script of this repository as a user does; returns what it printed, by stream."""
    return runner("scripts")
