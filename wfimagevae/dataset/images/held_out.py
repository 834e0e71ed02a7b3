"""Images in their own order, middle crops without chance: to measure on, and to encode once."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from wfimagevae.dataset.images.decode import UnreadableImage, open_rgb
from wfimagevae.dataset.images.image_sets import ImageParts, open_folder
from wfimagevae.dataset.images.index import index_images
from wfimagevae.dataset.images.labels import Labels
from wfimagevae.dataset.images.transforms import center_crop, resized_center_crop
from wfimagevae.dataset.protocol import Images, to_signed_unit
from wfimagevae.dataset.text.captions import Captions


class ValidImageDataset(Dataset):
    """Images in sorted order, resized and centre-cropped: the same on every machine and run.

    Args:
        source: Folder, searched recursively, JSON-lines manifest, or images already listed.
        resolution: The short side is resized to this many pixels (enlarged too) by
            `decode.INTERPOLATION`; None keeps the native size.
        crop_size: Side of the centre crop; None is ``resolution``, or else the whole image.
        subset_size: Use this many images, evenly spaced over the sorted list; 0 uses all.
    """

    def __init__(
        self,
        source: str | Path | Images,
        resolution: int | None = None,
        crop_size: int | None = None,
        subset_size: int = 0,
        cache_dir: str | Path | None = None,
    ):
        crop_size = resolution if crop_size is None else crop_size
        if resolution is not None and crop_size > resolution:
            raise ValueError(
                f"crop_size {crop_size} does not fit into images resized to {resolution}; "
                "lower the crop size or raise the resolution"
            )
        is_path = isinstance(source, str | Path)
        self.images = index_images(source, cache_dir) if is_path else source
        self.resolution, self.crop_size = resolution, crop_size
        self._indices = evenly_spaced(len(self.images), subset_size)

    @property
    def paths(self) -> list[str]:
        return [self.images.relative(i) for i in self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def index(self, i: int) -> int:
        """The number of image ``i`` of these among all images of the source."""
        return self._indices[i]

    def __getitem__(self, i: int) -> dict:
        """Image ``i``: ``image`` float32 (3, h, w) in [-1, 1], channels last in memory, or None;
        ``path``, relative, with forward slashes; ``error``, why it is unreadable, or None.
        """
        index = self._indices[i]
        sample = {"image": None, "path": self.images.relative(index), "error": None}
        min_side = self.crop_size if self.resolution is None and self.crop_size else 1
        try:
            image = open_rgb(self.images.file(index), min_side, self.resolution)
        except UnreadableImage as error:
            return sample | {"error": str(error)}
        pixels = torch.from_numpy(center_crop(image, self.crop_size))
        return sample | {"image": to_signed_unit(pixels)}


def evenly_spaced(total: int, count: int) -> list[int]:
    """So many of the numbers 0 to total - 1; all of them for 0, or if there are fewer."""
    count = min(count, total) or total
    return [i * total // count for i in range(count)]


def collate_images(samples: list[dict]) -> dict:
    """Stacks the readable samples of a `ValidImageDataset` and lists the others.

    Gives ``image`` (n, 3, h, w), channels last in memory, or None if n is 0; ``path``, a list of n;
    ``unreadable``, a list of (path, reason).
    """
    readable = [sample for sample in samples if sample["error"] is None]
    images = [sample["image"].movedim(0, -1) for sample in readable]
    return {
        "image": torch.stack(images).movedim(-1, 1) if images else None,
        "path": [sample["path"] for sample in readable],
        "unreadable": [(s["path"], s["error"]) for s in samples if s["error"] is not None],
    }


class IndexedImages:
    """Images of a folder or manifest in sorted order, with all their captions.

    ``resolution`` is the side, in pixels, of the crops that `resized_center_crop` makes of them.
    """

    def __init__(
        self,
        source: str | Path,
        resolution: int,
        labels: Labels,
        captions: Captions | None = None,
        cache_dir: str | Path | None = None,
    ):
        captions = captions or Captions()
        samples = open_folder(source, ImageParts(labels, captions, index_cache_dir=cache_dir))
        self.source = os.path.abspath(os.path.expanduser(source))
        self.resolution, self.prefix = resolution, captions.prefix
        self.images, (self.labels, self.class_names) = samples.images, samples.labels
        self._captions = samples.captions
        self.has_captions = samples.captions is not None

    def __len__(self) -> int:
        return len(self.images)

    def text(self, index: int) -> dict[str, Any]:
        """``name``, the relative path, and ``caption``: a string, a list of several, or None."""
        captions = self.captions(index)
        caption = captions if len(captions) > 1 else captions[0] if captions else None
        return {"name": self.images.relative(index), "caption": caption}

    def captions(self, index: int) -> list[str]:
        return [] if self._captions is None else self._captions.all(index)

    def fingerprint(self) -> str:
        """A hash of paths, labels and captions, in order; not of what is in the files."""
        digest = hashlib.sha256()
        for entry in self.images.entries:
            digest.update(entry + b"\0")
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        captions = map(self.captions, range(len(self))) if self.has_captions else [None]
        for lines in captions:
            digest.update(repr(lines).encode())
        return digest.hexdigest()

    def read_batch(self, indices: list[int]) -> dict[str, Any]:
        """The readable ones of some images: ``pixels`` uint8 (n, R, R, 3) and their ``index``;
        ``unreadable``, a list of (path, reason).
        """
        pixels, readable, unreadable = [], [], []
        for index in indices:
            try:
                image = open_rgb(self.images.file(index))
                pixels.append(resized_center_crop(image, self.resolution))
                readable.append(index)
            except UnreadableImage as error:
                unreadable.append((self.images.path(index), str(error)))
        shape = (-1, self.resolution, self.resolution, 3)
        stacked = torch.from_numpy(np.array(pixels, np.uint8).reshape(shape))
        return {"pixels": stacked, "index": readable, "unreadable": unreadable}
