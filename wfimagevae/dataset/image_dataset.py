"""The two image datasets: endless random crops to train on, centre crops to measure on."""

import itertools
import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from wfimagevae.dataset.decode import UnreadableImage, open_rgb
from wfimagevae.dataset.order import ShuffledOrder, stable_seed
from wfimagevae.dataset.sources import index_images
from wfimagevae.dataset.transforms import center_crop, random_crop, to_signed_unit

TRAIN_CROPS = ("native", "resized")
_MOST_FAILURES = 1000


class NoReadableImage(ValueError):
    """So many images failed in a row that training cannot go on."""


class TrainImageDataset(Dataset):
    """Random square crops, half of them mirrored, in an endless shuffled order.

    The sample at a position depends on (seed, position) and the files alone, never on the worker
    or rank that reads it. An unreadable image is replaced by the next readable one in the order,
    cropped with the random numbers of the position it stands in for.

    Args:
        source: Folder of images, scanned recursively, or JSON-lines manifest.
        resolution: Height and width of a crop, in pixels. An image whose height or width is
            smaller counts as unreadable: nothing is enlarged.
        seed: Of the order and of the crops.
        cache_dir: Where the list of images is kept between runs; None for the default.
        train_crop: ``native`` crops at the image's own scale; ``resized`` first shrinks its short
            side to ``resolution``, so that the crop is random along the long side only.
        use_manifest: Insist that ``source`` is a manifest.

    Raises:
        ValueError: a bad option, or ``source`` has no images.
    """

    def __init__(
        self,
        source: str | Path,
        resolution: int,
        seed: int = 1234,
        cache_dir: str | Path | None = None,
        train_crop: str = "native",
        use_manifest: bool = False,
    ):
        if resolution < 1:
            raise ValueError(f"resolution must be at least 1 pixel, got {resolution}")
        if train_crop not in TRAIN_CROPS:
            raise ValueError(f"unknown train_crop {train_crop!r}; use {' or '.join(TRAIN_CROPS)}")
        self.images = index_images(source, cache_dir, use_manifest)
        self.resolution, self.seed = resolution, seed
        self._short_side = resolution if train_crop == "resized" else None
        self._order = ShuffledOrder(len(self.images), seed)
        self._failed: dict[int, str] = {}

    def __len__(self) -> int:
        """Number of images, the length of an epoch in positions."""
        return len(self.images)

    def __getitem__(self, position: int) -> dict:
        """The sample at a position, any integer from 0 on.

        Returns:
            ``image`` float32 (3, R, R) in [-1, 1], channels last in memory; ``position``;
            ``unreadable``, a list of (path, reason) of the files that this process found
            unreadable just now. Each file is tried once per process.

        Raises:
            NoReadableImage: 1000 images in a row, or all there are, failed.
        """
        pixels, unreadable = self.read(position)
        image = to_signed_unit(torch.from_numpy(pixels))
        return {"image": image, "position": position, "unreadable": unreadable}

    def read(self, position: int) -> tuple[np.ndarray, list[tuple[str, str]]]:
        """As `__getitem__`, with the crop as uint8 (R, R, 3)."""
        met: list[tuple[str, str]] = []
        skipped: set[int] = set()
        for candidate in itertools.count(position):
            index = self._order.index(candidate)
            if index not in self._failed:
                try:
                    return self._crop(index, position), met
                except UnreadableImage as error:
                    self._failed[index] = str(error)
                    met.append((self.images.path(index), str(error)))
            skipped.add(index)
            if len(skipped) == min(len(self), _MOST_FAILURES):
                raise NoReadableImage(self._failure(skipped))

    def _crop(self, index: int, position: int) -> np.ndarray:
        image = open_rgb(self.images.path(index), self.resolution, self._short_side)
        rng = random.Random(stable_seed(self.seed, "augment", position))
        return random_crop(image, self.resolution, rng)

    def _failure(self, indices: set[int]) -> str:
        examples = [f"{self.images.path(i)} ({self._failed[i]})" for i in sorted(indices)[:3]]
        return (
            f"none of {len(indices)} images in a row can be used at resolution {self.resolution}, "
            f"for example {'; '.join(examples)}: check the image path and the resolution"
        )


class ValidImageDataset(Dataset):
    """Images in sorted order, resized and centre-cropped: the same on every machine and run.

    Args:
        source: Folder of images, scanned recursively, or JSON-lines manifest.
        resolution: The short side is resized to this many pixels (enlarged too) by
            `decode.INTERPOLATION`; None keeps the native size.
        crop_size: Height and width of the centre crop. None is ``resolution``; where that is None
            as well, the whole image.
        subset_size: Use this many images, evenly spaced over the sorted list; 0 uses all.
        cache_dir: Where the list of images is kept between runs; None for the default.

    Attributes:
        paths: Relative posix path of each image, sorted.

    Raises:
        ValueError: a bad option, or ``source`` has no images.
    """

    def __init__(
        self,
        source: str | Path,
        resolution: int | None = None,
        crop_size: int | None = None,
        subset_size: int = 0,
        cache_dir: str | Path | None = None,
    ):
        crop_size = resolution if crop_size is None else crop_size
        for name, value in (("resolution", resolution), ("crop_size", crop_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1 pixel, got {value}")
        if resolution is not None and crop_size > resolution:
            raise ValueError(
                f"crop_size {crop_size} does not fit into images resized to {resolution}; "
                "lower the crop size or raise the resolution"
            )
        if subset_size < 0:
            raise ValueError(f"subset_size must be 0 (all images) or more, got {subset_size}")
        self.images = index_images(source, cache_dir)
        self.resolution, self.crop_size = resolution, crop_size
        total = len(self.images)
        count = min(subset_size, total) or total
        self._indices = [i * total // count for i in range(count)]

    @property
    def paths(self) -> list[str]:
        return [self.images.relative(i) for i in self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, i: int) -> dict:
        """Image ``i``.

        Returns:
            ``image`` float32 (3, h, w) in [-1, 1], channels last in memory, or None if the file is
            unreadable; ``path``, relative, with forward slashes; ``error``, the reason or None.
        """
        index = self._indices[i]
        sample = {"image": None, "path": self.images.relative(index), "error": None}
        min_side = self.crop_size if self.resolution is None and self.crop_size else 1
        try:
            image = open_rgb(self.images.path(index), min_side, self.resolution)
        except UnreadableImage as error:
            return sample | {"error": str(error)}
        return sample | {
            "image": to_signed_unit(torch.from_numpy(center_crop(image, self.crop_size)))
        }


def collate_images(samples: list[dict]) -> dict:
    """Stacks the readable samples of a `ValidImageDataset` and lists the others.

    Returns:
        ``image`` (n, 3, h, w), channels last in memory, or None if n is 0; ``path``, a list of n;
        ``unreadable``, a list of (path, reason).
    """
    readable = [sample for sample in samples if sample["error"] is None]
    return {
        "image": _stack([sample["image"] for sample in readable]),
        "path": [sample["path"] for sample in readable],
        "unreadable": [(s["path"], s["error"]) for s in samples if s["error"] is not None],
    }


def _stack(images: list[Tensor]) -> Tensor | None:
    if not images:
        return None
    return torch.stack([image.movedim(0, -1) for image in images]).movedim(-1, 1)
