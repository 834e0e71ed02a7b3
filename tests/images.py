"""Small photographs-like files and a tiny model for tests of whole commands."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

TINY_MODEL = {
    "_class_name": "WFVAE2ImageModel",
    "latent_dim": 4,
    "base_channels": [8, 8, 16],
    "decoder_base_channels": [8, 8, 16],
    "encoder_energy_flow_size": 8,
    "decoder_energy_flow_size": 8,
}


def smooth_image(height: int, width: int, seed: int) -> np.ndarray:
    """Clouds of colour with edges: compressible as photographs are, (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    small = rng.random((6, 6, 3), dtype=np.float32)
    channels = [
        np.asarray(Image.fromarray(small[..., c]).resize((width, height), Image.Resampling.BICUBIC))
        for c in range(3)
    ]
    image = np.stack(channels, axis=-1)
    image[height // 3 : height // 2, width // 4 : width // 2] *= 0.4
    return (image.clip(0, 1) * 255).astype(np.uint8)


def write_images(folder: Path, count: int, size: int = 48, first_seed: int = 0) -> Path:
    """Writes ``count`` PNG files and returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        image = smooth_image(size, size + 8 * (i % 3), first_seed + i)
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    return folder


def write_captioned(folder: Path, count: int, size, suffixes=("png",)) -> Path:
    """Writes captioned images of two classes, ``a`` and ``b``; ``size(i)`` is height and width."""
    for i in range(count):
        home = folder / "ab"[i % 2]
        home.mkdir(parents=True, exist_ok=True)
        name = f"p{i}.{suffixes[i % len(suffixes)]}"
        Image.fromarray(smooth_image(*size(i), i)).save(home / name)
        (home / f"p{i}.txt").write_text(f"photo {i}\nnumber {i}\n")
    return folder


def write_tiny_config(folder: Path) -> Path:
    """Writes the configuration of a model that trains in milliseconds."""
    path = folder / "tiny.json"
    path.write_text(json.dumps(TINY_MODEL))
    return path
