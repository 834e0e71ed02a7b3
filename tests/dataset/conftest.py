from itertools import islice

import numpy as np
import pytest
from PIL import Image


def draw(loader, count=1):
    """The next batches, and the workers stopped."""
    batches = list(islice(loader, count))
    loader.close()
    return batches


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def noise():
    """Maker of a seeded RGB image of random pixels."""

    def make(width, height, seed=0):
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    return make


@pytest.fixture
def noise_files(tmp_path, noise):
    """Maker of a folder of different small images of these names."""

    def make(*names, size=(10, 10)):
        for i, name in enumerate(names):
            path = tmp_path / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            noise(*size, seed=i).save(path)
        return tmp_path / "images"

    return make


@pytest.fixture
def natural():
    """Maker of a seeded RGB image with the 1/f spectrum of photographs."""

    def make(width, height, seed=0):
        rng = np.random.default_rng(seed)
        y, x = np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij")
        amplitude = 1 / np.maximum(np.hypot(x, y), 1 / max(width, height)) ** 1.2
        spectrum = np.fft.fft2(rng.standard_normal((3, height, width))) * amplitude
        luma, *colour = np.fft.ifft2(spectrum).real
        pixels = np.stack([luma, luma + 0.2 * colour[0], luma + 0.2 * colour[1]], axis=2)
        pixels = 128 + 45 * (pixels - pixels.mean()) / pixels.std()
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

    return make


@pytest.fixture
def flat_folder(tmp_path):
    """Maker of a folder whose image i (00.png, 01.png, ...) has the gray value 10 i + 5."""

    def make(count, size=12, name="images"):
        folder = tmp_path / name
        folder.mkdir()
        for i in range(count):
            Image.new("RGB", (size, size), (10 * i + 5,) * 3).save(folder / f"{i:02d}.png")
        return folder

    return make


@pytest.fixture
def noise_folder(noise_files):
    """Maker of a folder of different random images, larger than the crops taken from them."""

    def make(count, width=20, height=16):
        return noise_files(*(f"{i:02d}.png" for i in range(count)), size=(width, height))

    return make
