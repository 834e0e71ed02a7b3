"""From upright RGB images to crops, 8-bit."""

import random

import numpy as np
from PIL import Image

from wfimagevae.dataset.images.decode import UnreadableImage, check_pixels
from wfimagevae.dataset.order import stable_seed


def center_crop(image: Image.Image, size: int | tuple[int, int] | None) -> np.ndarray:
    """The middle (height, width) or square of ``size`` pixels; None: all; uint8 (h, w, 3)."""
    if size is None:
        return np.array(image)
    height, width = (size, size) if isinstance(size, int) else size
    return crop_at(image, (image.width - width) // 2, (image.height - height) // 2, (height, width))


def crop_at(image: Image.Image, left: int, top: int, size: tuple[int, int]) -> np.ndarray:
    """A (height, width) crop, uint8 (h, w, 3); `UnreadableImage` where it leaves the image."""
    (height, width), (w, h) = size, image.size
    if min(left, top) < 0 or left + width > w or top + height > h:  # Pillow would add black
        raise UnreadableImage(
            f"a crop of {width}x{height} at {left},{top} leaves the {w}x{h} image"
        )
    return np.array(image.crop((left, top, left + width, top + height)))


def resized_center_crop(image: Image.Image, size: int) -> np.ndarray:
    """The middle square of an image whose short side is resized: uint8 (size, size, 3).

    Halved by averaging as long as it stays at least that large, then resized bicubically: the
    preprocessing behind the public class-conditional ImageNet models.

    Source: Dhariwal and Nichol 2021 (ADM), arXiv:2105.05233, the released code.
    """
    while min(image.size) >= 2 * size:
        halved = (image.width // 2, image.height // 2)
        image = image.resize(halved, Image.Resampling.BOX)
    scale = size / min(image.size)
    resized = (round(image.width * scale), round(image.height * scale))
    check_pixels(resized, f"after {image.width}x{image.height} is resized")
    return center_crop(image.resize(resized, Image.Resampling.BICUBIC), size)


def mirror_half(pixels: np.ndarray, seed: int, positions: list[int]) -> None:
    """Mirrors images (B, h, w, 3) left to right in place, half of them, by (seed, position)."""
    for image, position in zip(pixels, positions, strict=True):
        if random.Random(stable_seed(seed, "augment", position)).random() < 0.5:
            image[:] = image[:, ::-1]


def jitter_colors(pixels: np.ndarray, strength: float, rng: random.Random) -> np.ndarray:
    """An image, uint8 (h, w, 3), in other colours.

    Brightness, contrast and saturation are multiplied, in this order, by 1 - strength to 1 +
    strength each, and the hue is turned by up to 0.4 strength of its circle either way.
    """
    from torchvision.transforms import functional as F  # a second, for those who ask for it

    image, amounts = Image.fromarray(pixels), [strength * (2 * rng.random() - 1) for _ in range(4)]
    adjusts = F.adjust_brightness, F.adjust_contrast, F.adjust_saturation
    for adjust, amount in zip(adjusts, amounts[:3], strict=True):
        image = adjust(image, 1 + amount)
    return np.array(F.adjust_hue(image, 0.4 * amounts[3]))
