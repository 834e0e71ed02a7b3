"""Clips and models, small, written by the tests themselves."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from clips import write_clip
from tests.running import runner
from wfvae_video import WFVAE
from wfvae_video.loading import WEIGHTS

TINY = {
    "latent_dim": 4,
    "base_channels": 4,
    "encoder_num_resblocks": 1,
    "encoder_energy_flow_hidden_size": 3,
    "decoder_num_resblocks": 1,
    "decoder_energy_flow_hidden_size": 4,
    "norm_type": "layernorm",
    "t_interpolation": "trilinear",
}
FACTOR_8 = {
    "l1_dowmsample_block": "Spatial2xTime2x3DDownsample",
    "l1_downsample_wavelet": "HaarWaveletTransform3D",
    "l1_upsample_block": "Spatial2xTime2x3DUpsample",
    "l1_upsample_wavelet": "InverseHaarWaveletTransform3D",
}
TINY_2 = {
    "base_channels": [4, 5, 7],
    "encoder_energy_flow_size": 3,
    "decoder_energy_flow_size": 4,
}


def by_formula(model):
    """Fills a model with weights that follow from their names, by whole numbers, alike anywhere."""
    state = {}
    for name, tensor in model.state_dict().items():
        mask = np.uint64(0xFFFFFFFF)
        hashed = np.arange(tensor.numel(), dtype=np.uint64) * np.uint64(2654435761)
        hashed = (hashed + np.uint64(zlib.crc32(name.encode()))) & mask
        for _ in range(2):
            hashed = ((hashed ^ (hashed >> np.uint64(16))) * np.uint64(0x45D9F3B)) & mask
        uniform = (hashed ^ (hashed >> np.uint64(16))).astype(np.float64) / 2**32 - 0.5
        if "norm" in name:
            values = 0.4 * uniform + name.endswith("weight")
        elif name.endswith("bias"):
            values = 0.2 * uniform
        else:
            values = uniform * 4 / np.sqrt(tensor[0].numel())
        state[name] = torch.from_numpy(values.astype(np.float32)).view(tensor.shape)
    model.load_state_dict(state)
    return model.eval()


@pytest.fixture(scope="session")
def golden():
    """Values of the public code, by set and name; clips are its causal beginnings, cut."""
    return load_file(Path(__file__).with_name("golden.safetensors"))


def save_model(model, folder, **changes):
    """A Hugging Face folder of a model, with other values in its config."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"_class_name": f"{type(model).__name__}Model", **vars(model.config), **changes}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / WEIGHTS)
    return folder


@pytest.fixture(scope="session")
def tiny_video_vae(tmp_path_factory):
    """A small WFVAE whose weights follow a formula, as a Hugging Face folder."""
    statistics = {"scale": [1.0] * 4, "shift": [0.0] * 4}
    model = by_formula(WFVAE(**TINY, **statistics))
    return save_model(model, tmp_path_factory.mktemp("video_vae") / "tiny")


def moving_square(num_frames, height, width):
    """8-bit frames (T, H, W, 3): a bright square on a slope of colours, one pixel further each."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    slope = torch.stack([rows * 255 // height, columns * 255 // width, rows * 0 + 90], dim=-1)
    frames = slope.to(torch.uint8).repeat(num_frames, 1, 1, 1)
    for i, frame in enumerate(frames):
        frame[4 + i : 12 + i, 6 + i : 14 + i] = 250
    return frames


@pytest.fixture(scope="session")
def video_clips(tmp_path_factory):
    """Three lossless clips in two folders, of different shapes, lengths and rates."""
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "a" / "wide.mp4", moving_square(12, 40, 64), 25, lossless=True)
    write_clip(folder / "a" / "tall.mkv", moving_square(9, 50, 36), 30000 / 1001, lossless=True)
    write_clip(folder / "short.mov", moving_square(2, 48, 48), 10, lossless=True)
    return folder


@pytest.fixture(scope="session")
def run_legacy():
    """Runs a script of legacy/ as a user does; returns what it printed, by stream."""
    return runner("legacy")
