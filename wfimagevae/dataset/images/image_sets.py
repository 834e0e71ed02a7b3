"""Images with what is known of them: sizes, classes, captions, fields of their records."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wfimagevae.dataset.arrays import IndexCache, in_processes
from wfimagevae.dataset.images.decode import image_size
from wfimagevae.dataset.images.index import ImageIndex, index_images, manifest_values
from wfimagevae.dataset.images.labels import Labels, read_labels
from wfimagevae.dataset.protocol import Images
from wfimagevae.dataset.text.captions import Captions, CaptionTable, read_captions
from wfimagevae.files import file_version

_SIZES_VERSION = 3
_CHUNK = 512  # images that a process measures at a time


@dataclass
class ImageSet:
    """Images and what goes with each, by the same number; None for what nobody asked for.

    ``sizes`` are width and height, upright, int32 (N, 2), 0 where unreadable; ``labels`` the class
    of each, int64 (N,), and the classes' names. ``record`` gives the fields that a manifest's line
    or a json member has of an image, ``shard`` the number of the file that each lies in,
    increasing.
    """

    images: Images
    sizes: np.ndarray | None = None
    labels: tuple[np.ndarray | None, list[str]] = (None, [])
    captions: CaptionTable | None = None
    record: Callable[[int], dict[str, Any]] | None = None
    shard: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    def select(self, indices: Sequence[int]) -> "ImageSet":
        """Some of the images, in increasing order."""
        rows = np.asarray(indices, np.int64)
        numbers, class_names = self.labels
        record = self.record
        return ImageSet(
            self.images.select(rows),
            None if self.sizes is None else self.sizes[rows],
            (None if numbers is None else numbers[rows], class_names),
            self.captions and CaptionTable(self.captions.all(i) for i in rows),
            record and (lambda i: record(int(rows[i]))),
            None if self.shard is None else self.shard[rows],
        )


@dataclass(frozen=True)
class ImageParts:
    """What to read of images besides their pixels.

    ``sizes`` are wanted or not, and so are ``records``, fields of a manifest's line or a json
    member. ``index_cache_dir`` keeps lists of images, their sizes, and indices of shards.
    """

    labels: Labels = field(default_factory=Labels)
    captions: Captions = field(default_factory=Captions)
    sizes: bool = False
    records: bool = False
    index_cache_dir: str | Path | None = None


def open_folder(source: str | Path, wanted: ImageParts | None = None) -> ImageSet:
    """The images of a folder or manifest.

    Errors are those of `index_images`, `read_labels` and `read_captions`.
    """
    wanted = wanted or ImageParts()
    images = index_images(source, wanted.index_cache_dir)
    samples = ImageSet(images)
    if wanted.labels.kind != "none":
        samples.labels = read_labels(source, images, wanted.labels)
    if wanted.captions.kind != "none":
        samples.captions = read_captions(source, images, wanted.captions)
    path = os.path.abspath(os.path.expanduser(source))
    if wanted.sizes:
        image_folder = path if os.path.isdir(path) else None
        samples.sizes = measured_sizes(images, wanted.index_cache_dir, image_folder)
    if wanted.records and os.path.isfile(path):
        samples.record = manifest_values(path, images, lambda record: record)[0]
    return samples


def measured_sizes(
    images: ImageIndex, cache_dir: str | Path | None = None, image_folder: str | None = None
) -> np.ndarray:
    """Width and height of every image, upright, int32 (N, 2); 0 for a file that is no image.

    They are read from the headers of the files, once: later only of files that are new, changed or
    were unreadable.
    Nothing is kept in ``image_folder``, the user's folder of these images, if they are of one.
    """
    cache = IndexCache(cache_dir, "image sizes", [image_folder] if image_folder else [])

    def version_id(i: int) -> int:
        """A number for a file in one version."""
        text = images.entries[i] + f"\0{file_version(images.path(i))}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")

    ids = np.fromiter(map(version_id, range(len(images))), np.uint64, len(images))

    def unchanged(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The sizes of files that are as they were, 0 of the others."""
        by_id = np.argsort(arrays["ids"], kind="stable")
        place = by_id[np.searchsorted(arrays["ids"], ids, sorter=by_id).clip(max=len(by_id) - 1)]
        found = np.where((arrays["ids"][place] == ids)[:, None], arrays["sizes"][place], 0)
        return found.astype(np.int32).reshape(len(images), 2)

    with cache.locked(images.root):  # one process works for all
        sizes = cache.load(images.root, _SIZES_VERSION, unchanged)
        if sizes is None:
            sizes = np.zeros((len(images), 2), np.int32)
        # Measure the others, and again what could not be read: it may be by now.
        unknown = np.flatnonzero(sizes.min(axis=1) <= 0)
        if len(unknown):
            parts = np.array_split(unknown, -(-len(unknown) // _CHUNK))
            chunks = list(map(images.select, parts))
            bar = {"unit": "image", "unit_scale": _CHUNK}
            measured = in_processes(_measured, chunks, "measure images", **bar)
            sizes[unknown] = np.concatenate(list(measured))
            cache.save(images.root, _SIZES_VERSION, {"ids": ids, "sizes": sizes})
    return sizes


def _measured(images: ImageIndex) -> np.ndarray:
    return np.array([image_size(images.path(i)) for i in range(len(images))], np.int32)
