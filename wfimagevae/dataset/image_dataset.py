"""The two image datasets: endless random crops to train on, centre crops to measure on."""

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from wfimagevae.dataset.decode import UnreadableImage, open_rgb
from wfimagevae.dataset.labels import Labels, read_labels
from wfimagevae.dataset.order import ShuffledOrder, stable_seed
from wfimagevae.dataset.protocol import DataError
from wfimagevae.dataset.sources import index_images
from wfimagevae.dataset.transforms import (
    center_crop,
    image_inputs,
    mirror_half,
    random_crop,
    resized_center_crop,
    to_signed_unit,
)

TRAIN_CROPS = ("native", "resized", "center")
_MOST_FAILURES = 1000


class NoReadableImage(DataError):
    """So many images failed in a row that training cannot go on."""


class TrainImageDataset(Dataset):
    """Square crops, half of them mirrored, in an endless shuffled order, with labels or without.

    The sample at a position depends on (seed, position) and the files alone, never on the worker
    or rank that reads it. An unreadable image is replaced by the next readable one in the order,
    cropped with the random numbers of the position it stands in for.

    Args:
        source: Folder of images, scanned recursively, or JSON-lines manifest.
        resolution: Height and width of a crop, in pixels. An image whose height or width is
            smaller counts as unreadable: nothing is enlarged (but by ``center``).
        seed: Of the order and of the crops.
        cache_dir: Where the list of images is kept between runs; None for the default.
        train_crop: ``native`` crops at the image's own scale; ``resized`` first shrinks its short
            side to ``resolution``, so that the crop is random along the long side only;
            ``center`` takes `resized_center_crop`, as class-conditional ImageNet models do.
        use_manifest: Insist that ``source`` is a manifest.
        labels: Where the classes come from; a bare kind of `Labels` will do.
        augment: False takes the middle in place of random crops and mirrors nothing, for data
            held out.

    Attributes:
        sample_shape: (3, resolution, resolution).
        num_classes: 0 without labels.
        class_names: One a class, in the order of their numbers.
        data_key: ``image``.

    Raises:
        ValueError: a bad option, ``source`` has no images, or labels are missing; see
            `read_labels`.
    """

    data_key = "image"

    def __init__(
        self,
        source: str | Path,
        resolution: int,
        seed: int = 1234,
        cache_dir: str | Path | None = None,
        train_crop: str = "native",
        use_manifest: bool = False,
        labels: str | Labels = "none",
        augment: bool = True,
    ):
        if resolution < 1:
            raise ValueError(f"resolution must be at least 1 pixel, got {resolution}")
        if train_crop not in TRAIN_CROPS:
            raise ValueError(f"unknown train_crop {train_crop!r}; use {' or '.join(TRAIN_CROPS)}")
        self.images = index_images(source, cache_dir, use_manifest)
        labels = Labels(labels) if isinstance(labels, str) else labels
        self._labels, self.class_names = read_labels(source, self.images, labels)
        self.num_classes = len(self.class_names)
        self.resolution, self.seed, self.augment = resolution, seed, augment
        self.sample_shape = (3, resolution, resolution)
        self._train_crop = train_crop
        self._order = ShuffledOrder(len(self.images), seed)
        self._failed: dict[int, str] = {}

    def __len__(self) -> int:
        """Number of images, the length of an epoch in positions."""
        return len(self.images)

    def __getitem__(self, position: int) -> dict:
        """The sample at a position, any integer from 0 on.

        Returns:
            ``image`` float32 (3, R, R) in [-1, 1], channels last in memory; ``label``, an integer,
            if there are labels; ``position``; ``unreadable``, a list of (path, reason) of the
            files that this process found unreadable just now. Each file is tried once per process.

        Raises:
            NoReadableImage: 1000 images in a row, or all there are, failed.
        """
        pixels, index, unreadable = self._read(position)
        image = to_signed_unit(torch.from_numpy(pixels.copy()))
        label = {} if self._labels is None else {"label": int(self._labels[index])}
        return {"image": image, "position": position, "unreadable": unreadable} | label

    def read_batch(self, positions: list[int]) -> dict[str, Any]:
        """The samples at some positions, compact.

        Returns:
            ``pixels`` uint8 (B, R, R, 3); ``label`` int64 (B,), if there are labels;
            ``unreadable``, as for `__getitem__`.

        Raises:
            NoReadableImage: as for `__getitem__`.
        """
        pixels = torch.empty(len(positions), self.resolution, self.resolution, 3, dtype=torch.uint8)
        indices, unreadable = [], []
        for slot, position in zip(pixels.numpy(), positions, strict=True):
            slot[:], index, met = self._read(position)
            indices.append(index)
            unreadable += met
        label = {} if self._labels is None else {"label": torch.from_numpy(self._labels[indices])}
        return {"pixels": pixels, "unreadable": unreadable} | label

    def to_inputs(self, batch: dict[str, Any], device: torch.device) -> dict[str, Tensor]:
        """``image`` float32 (B, 3, R, R) in [-1, 1] and ``label``, if any, on ``device``."""
        return image_inputs(batch, device)

    def _read(self, position: int) -> tuple[np.ndarray, int, list[tuple[str, str]]]:
        """A crop, uint8 (R, R, 3), the image it is of, and the unreadable files just met."""
        met: list[tuple[str, str]] = []
        skipped: set[int] = set()
        for candidate in itertools.count(position):
            index = self._order.index(candidate)
            if index not in self._failed:
                try:
                    return self._crop(index, position), index, met
                except UnreadableImage as error:
                    self._failed[index] = str(error)
                    met.append((self.images.path(index), str(error)))
            skipped.add(index)
            if len(skipped) == min(len(self), _MOST_FAILURES):
                raise NoReadableImage(self._failure(skipped))

    def _crop(self, index: int, position: int) -> np.ndarray:
        path, size = self.images.path(index), self.resolution
        rng = random.Random(stable_seed(self.seed, "augment", position))
        if self._train_crop == "center":
            pixels = resized_center_crop(open_rgb(path), size)
            return mirror_half(pixels, rng) if self.augment else pixels
        image = open_rgb(path, size, size if self._train_crop == "resized" else None)
        return random_crop(image, size, rng) if self.augment else center_crop(image, size)

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
