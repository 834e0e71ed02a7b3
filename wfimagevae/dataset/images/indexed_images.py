"""Images one after another, with label and captions: what is encoded once and kept."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wfimagevae.dataset.images.decode import UnreadableImage, open_rgb
from wfimagevae.dataset.images.index import index_images
from wfimagevae.dataset.images.labels import Labels, read_labels
from wfimagevae.dataset.images.transforms import resized_center_crop
from wfimagevae.dataset.text.captions import Captions, read_captions


class IndexedImages:
    """Images in sorted order, cut by `resized_center_crop`.

    Args:
        source: Folder of images, scanned recursively, or JSON-lines manifest.
        resolution: Height and width of a crop, in pixels.
        labels: Where the classes come from.
        captions: Where the captions come from, all of which are kept.
        cache_dir: Where the list of images is kept between runs; None for the default.

    Attributes:
        class_names: One a class, or none.
        labels: int64 (N,), or None.
        has_captions: Whether images come with captions.
        prefix: What stands before every caption.

    Raises:
        ValueError: no images, or labels or captions are missing (see `read_labels` and
            `read_captions`).
    """

    def __init__(
        self,
        source: str | Path,
        resolution: int,
        labels: Labels,
        captions: Captions | None = None,
        cache_dir: str | Path | None = None,
    ):
        self.source = os.path.abspath(os.path.expanduser(source))
        self.resolution = resolution
        self.images = index_images(source, cache_dir)
        self.labels, self.class_names = read_labels(source, self.images, labels)
        captions = captions or Captions()
        self.prefix = captions.prefix
        self._captions = read_captions(source, self.images, captions)
        self.has_captions = self._captions is not None

    def __len__(self) -> int:
        """Number of images, unreadable ones included."""
        return len(self.images)

    def text(self, index: int) -> dict[str, Any]:
        """``name``, the relative path, and ``caption`` of an image.

        The latter is a string, a list of several, or None.
        """
        captions = self.captions(index)
        caption = captions if len(captions) > 1 else captions[0] if captions else None
        return {"name": self.images.relative(index), "caption": caption}

    def captions(self, index: int) -> list[str]:
        """Every caption of an image; none without captions."""
        return [] if self._captions is None else self._captions.all(index)

    def fingerprint(self) -> str:
        """A hash of paths, labels and captions, in order; not of what is in the files."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            digest.update(self.images.entry(index) + b"\0")
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        captions = map(self.captions, range(len(self))) if self.has_captions else [None]
        for lines in captions:
            digest.update(repr(lines).encode())
        return digest.hexdigest()

    def read_batch(self, indices: list[int]) -> dict[str, Any]:
        """The readable ones of some images.

        Returns:
            ``pixels`` uint8 (n, R, R, 3); ``index``, of these n; ``unreadable``, a list of
            (path, reason).
        """
        pixels, readable, unreadable = [], [], []
        for index in indices:
            path = self.images.path(index)
            try:
                pixels.append(resized_center_crop(open_rgb(path), self.resolution))
                readable.append(index)
            except UnreadableImage as error:
                unreadable.append((path, str(error)))
        shape = (len(pixels), self.resolution, self.resolution, 3)
        stacked = np.stack(pixels) if pixels else np.empty(shape, np.uint8)
        return {
            "pixels": torch.from_numpy(stacked),
            "index": readable,
            "unreadable": unreadable,
        }
