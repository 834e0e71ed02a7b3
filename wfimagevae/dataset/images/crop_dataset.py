"""Random crops of any images in any endless order: what all training on images is made of."""

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic.dataclasses import dataclass
from torch.utils.data import Dataset

from wfimagevae.dataset.images.decode import UnreadableImage, open_rgb
from wfimagevae.dataset.images.image_sets import ImageParts, open_folder
from wfimagevae.dataset.images.labels import Labels
from wfimagevae.dataset.images.transforms import (
    center_crop,
    crop_at,
    jitter_colors,
    resized_center_crop,
)
from wfimagevae.dataset.options import Crop
from wfimagevae.dataset.order import Order, ShuffledOrder, stable_seed
from wfimagevae.dataset.protocol import DataError, Images, TrainData
from wfimagevae.dataset.text.captions import Captions, CaptionTable
from wfimagevae.options import Count

_MOST_FAILURES = 1000


class NoReadableImage(DataError):
    """So many images failed in a row that training cannot go on."""


@dataclass(frozen=True)
class CropRules:
    """How an image becomes a sample.

    Attributes:
        resolution: Height and width of a crop, in pixels, where the order asks for no other size.
            An image that is smaller counts as unreadable: nothing is enlarged (but by ``center``).
        train_crop: ``native`` crops at the image's own scale; ``resized`` first shrinks it as far
            as the crop fits, so that the crop is random along one side only; ``center`` takes the
            middle after resizing, of squares by `resized_center_crop`.
        resize_ratio: ``resized`` shrinks less by chance, so that the crop's area is between this
            share of the largest one's and all of it, uniformly, as far as nothing is enlarged.
        mirror: Whether half of the crops are mirrored.
        color_jitter: Colours are changed at random, by this much, see `jitter_colors`.
        augment: False takes the middle in place of random crops and changes nothing, for data
            held out.
    """

    resolution: Count
    train_crop: Crop = "native"
    augment: bool = True
    resize_ratio: float = 1.0
    mirror: bool = True
    color_jitter: float = 0.0

    def crop(
        self, images: Images, index: int, size: tuple[int, int], rng: random.Random
    ) -> np.ndarray:
        """A crop of an image, uint8 (*size, 3); `UnreadableImage` if it is damaged or small."""
        file, (height, width) = images.file(index), size
        if self.train_crop == "center" and height == width:
            pixels = resized_center_crop(open_rgb(file), height)
        elif self.train_crop == "center":
            pixels = center_crop(open_rgb(file, short_side=size), size)
        else:
            resized = size if self.train_crop == "resized" else None
            if resized and self.augment and self.resize_ratio < 1:
                side = math.sqrt(self.resize_ratio + (1 - self.resize_ratio) * rng.random())
                resized = math.ceil(height / side), math.ceil(width / side)
            image = open_rgb(file, size, resized, enlarge=False)
            if self.augment:
                # random() is the one method whose stream Python promises to keep between versions.
                left = int(rng.random() * (image.width - width + 1))
                top = int(rng.random() * (image.height - height + 1))
                pixels = crop_at(image, left, top, size)
            else:
                pixels = center_crop(image, size)
        if self.augment and self.mirror and rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        if self.augment and self.color_jitter:
            pixels = jitter_colors(pixels, self.color_jitter, rng)
        return pixels


class CropDataset(TrainData, Dataset):
    """Crops, half of them mirrored, in an endless order, with labels and captions or without.

    The sample at a position depends on (seed, position) and the files alone, never on the worker or
    rank that reads it. An unreadable image is replaced by the next readable one that the order
    names, cropped with the random numbers of the position it stands in for; each file is tried once
    per process and size. When 1000 images in a row, or all, fail, that is `NoReadableImage`. See
    `TrainData` for its attributes.

    ``labels`` are the class of every image, int64, or None, and the classes' names. Without an
    ``order`` all images are shuffled, every epoch anew.
    """

    def __init__(
        self,
        images: Images,
        rules: CropRules,
        seed: int = 1234,
        order: Order | None = None,
        labels: tuple[np.ndarray | None, list[str]] = (None, []),
        captions: CaptionTable | None = None,
    ):
        self.images, self.rules, self.seed = images, rules, seed
        self._labels, self.class_names = labels
        self._captions = captions
        self.has_captions = captions is not None
        self.resolution = rules.resolution
        self.sample_shape = (3, rules.resolution, rules.resolution)
        self._order = order or ShuffledOrder(len(images), seed)
        self.sizes = list(self._order.sizes) or [self.sample_shape[1:]]
        self._failed: dict[tuple[int, tuple[int, int]], str] = {}

    def __getitem__(self, position: int) -> dict:
        """The sample at a position, any integer from 0 on: the row of `to_inputs`, on the CPU."""
        inputs = self.to_inputs(self.read_batch([position]), torch.device("cpu"))
        unreadable = {"unreadable": inputs.pop("unreadable")}
        return {name: values[0] for name, values in inputs.items()} | unreadable

    def read_batch(self, positions: list[int]) -> dict[str, Any]:
        """The samples at some positions, all of one size, compact, as they travel.

        Gives ``pixels`` uint8 (B, h, w, 3); ``label`` int64 (B,), if there are labels; ``caption``,
        B strings, if there are captions; ``unreadable``, a list of (path, reason) of the files that
        were just found so.
        """
        size = self.sample_shape[1:]
        if self._order.sizes:
            size, *others = {self._order.size(position) for position in positions}
            if others:
                raise DataError(
                    f"positions {positions[0]} to {positions[-1]} belong to images of several "
                    "sizes; batches must be those that the buckets were dealt in"
                )
        pixels = torch.empty(len(positions), *size, 3, dtype=torch.uint8)
        indices, unreadable = [], []
        for slot, position in zip(pixels.numpy(), positions, strict=True):
            slot[:], index = self._read(position, size, unreadable)
            indices.append(index)
        batch = {"pixels": pixels, "unreadable": unreadable}
        if self._labels is not None:
            batch["label"] = torch.from_numpy(self._labels[indices])
        if self._captions is not None:
            pairs = zip(indices, positions, strict=True)
            batch["caption"] = [self._captions.pick(i, k, self.seed) for i, k in pairs]
        return batch

    def _read(
        self, position: int, size: tuple[int, int], unreadable: list[tuple[str, str]]
    ) -> tuple[np.ndarray, int]:
        # Try what the order names, then what it has for stand-ins, until one can be read.
        skipped: set[int] = set()
        for index in self._order.candidates(position):
            if (index, size) not in self._failed:
                try:
                    rng = random.Random(stable_seed(self.seed, "augment", position))
                    return self.rules.crop(self.images, index, size, rng), index
                except UnreadableImage as error:
                    self._failed[index, size] = str(error)
                    unreadable.append((self.images.name(index), str(error)))
            skipped.add(index)
            if len(skipped) == min(len(self.images), _MOST_FAILURES):
                break
        examples = [f"{self.images.name(i)} ({self._failed[i, size]})" for i in sorted(skipped)[:3]]
        shape = size[0] if size[0] == size[1] else f"{size[0]} x {size[1]}"
        raise NoReadableImage(
            f"none of {len(skipped)} images in a row can be used at resolution {shape}, "
            f"for example {'; '.join(examples)}: check the image path and the resolution"
        )


class TrainImageDataset(CropDataset):
    """Square crops of the images of a folder or manifest, in an endless shuffled order.

    ``labels`` and ``captions`` say where they come from; a bare kind of `Labels` or `Captions` will
    do. The list of images is kept in ``cache_dir`` between runs (see `IndexCache`); the others are
    those of `CropRules`.
    """

    def __init__(
        self,
        source: str | Path,
        resolution: int,
        seed: int = 1234,
        cache_dir: str | Path | None = None,
        train_crop: Crop = "native",
        labels: str | Labels = "none",
        captions: str | Captions = "none",
        augment: bool = True,
    ):
        rules = CropRules(resolution, train_crop, augment)
        labels = Labels(labels) if isinstance(labels, str) else labels
        captions = Captions(captions) if isinstance(captions, str) else captions
        found = open_folder(source, ImageParts(labels, captions, index_cache_dir=cache_dir))
        super().__init__(found.images, rules, seed, labels=found.labels, captions=found.captions)
