"""Images one after another, with label and caption: what is encoded once and kept."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wfimagevae.dataset.decode import UnreadableImage, open_rgb
from wfimagevae.dataset.labels import Labels, read_labels
from wfimagevae.dataset.sources import index_images, manifest_records
from wfimagevae.dataset.transforms import resized_center_crop


class IndexedImages:
    """Images in sorted order, cut by `resized_center_crop`.

    Args:
        source: Folder of images, scanned recursively, or JSON-lines manifest, whose field
            ``caption`` is kept.
        resolution: Height and width of a crop, in pixels.
        labels: Where the classes come from.
        cache_dir: Where the list of images is kept between runs; None for the default.

    Attributes:
        class_names: One a class, or none.
        labels: int64 (N,), or None.

    Raises:
        ValueError: no images, or labels are missing (see `read_labels`); a caption is no text.
    """

    def __init__(
        self,
        source: str | Path,
        resolution: int,
        labels: Labels,
        cache_dir: str | Path | None = None,
    ):
        self.source = os.path.abspath(os.path.expanduser(source))
        self.resolution = resolution
        self.images = index_images(source, cache_dir)
        self.labels, self.class_names = read_labels(source, self.images, labels)
        self._captions = self._read_captions()

    def _read_captions(self) -> list[str | None] | None:
        if os.path.isdir(self.source):
            return None
        lines = []
        for where, path, record in manifest_records(self.source):
            caption = record.get("caption")
            if not isinstance(caption, str | None):
                raise ValueError(f"{where}: a caption is text, got {caption!r:.80}")
            lines.append((os.fsencode(path), caption))
        lines.sort(key=lambda line: line[0])  # stable, as the index is sorted
        return [caption for _, caption in lines]

    def __len__(self) -> int:
        """Number of images, unreadable ones included."""
        return len(self.images)

    def text(self, index: int) -> dict[str, str | None]:
        """``name``, the relative path, and ``caption`` (or None) of an image."""
        caption = self._captions[index] if self._captions else None
        return {"name": self.images.relative(index), "caption": caption}

    def fingerprint(self) -> str:
        """A hash of paths, labels and captions, in order; not of what is in the files."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            digest.update(self.images.entry(index) + b"\0")
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        digest.update(repr(self._captions).encode())
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
