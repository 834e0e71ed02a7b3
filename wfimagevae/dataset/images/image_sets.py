"""Images with what is known of them: sizes, classes, captions, fields of their records."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from wfimagevae.dataset.images.image_sizes import measured_sizes
from wfimagevae.dataset.images.index import in_index_order, index_images
from wfimagevae.dataset.images.labels import Labels, read_labels
from wfimagevae.dataset.protocol import Images
from wfimagevae.dataset.text.captions import Captions, CaptionTable, read_captions


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
    labels: tuple[np.ndarray | None, list[str]] = field(default_factory=lambda: (None, []))
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


class JoinedImages(Images):
    """Several sources of images, one after another."""

    def __init__(self, parts: Sequence[Images]):
        self.parts = list(parts)
        self._starts = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _place(self, i: int) -> tuple[int, Images, int]:
        """The source of image ``i``, by number and itself, and the image's number there."""
        number = int(np.searchsorted(self._starts, i, side="right")) - 1
        return number, self.parts[number], i - int(self._starts[number])

    def name(self, i: int) -> str:
        _, part, row = self._place(i)
        return part.name(row)

    def aliases(self, i: int) -> list[str]:
        _, part, row = self._place(i)
        return part.aliases(row)

    def relative(self, i: int) -> str:
        number, part, row = self._place(i)
        return f"{number}/{part.relative(row)}"

    def file(self, i: int) -> str | BinaryIO:
        _, part, row = self._place(i)
        return part.file(row)

    def select(self, indices: Sequence[int]) -> "JoinedImages":
        rows = [[] for _ in self.parts]
        for i in indices:
            number, _, row = self._place(i)
            rows[number].append(row)
        return JoinedImages([part.select(r) for part, r in zip(self.parts, rows, strict=True)])


@dataclass(frozen=True)
class ImageParts:
    """What to read of images besides their pixels.

    ``sizes`` are wanted or not, and so are ``records``, fields of a manifest's line or a json
    member. ``may_lack_captions`` leaves it to the caller to check that shards have any.
    ``index_cache_dir`` keeps lists of images, their sizes, and indices of shards.
    """

    labels: Labels = field(default_factory=Labels)
    captions: Captions = field(default_factory=Captions)
    sizes: bool = False
    records: bool = False
    may_lack_captions: bool = False
    index_cache_dir: str | Path | None = None


def open_folder(
    source: str | Path, wanted: ImageParts | None = None, use_manifest: bool = False
) -> ImageSet:
    """The images of a folder or manifest; of the latter only, if ``use_manifest`` insists on it.

    Errors are those of `index_images`, `read_labels` and `read_captions`.
    """
    wanted = wanted or ImageParts()
    images = index_images(source, wanted.index_cache_dir, use_manifest)
    samples = ImageSet(
        images,
        labels=read_labels(source, images, wanted.labels),
        captions=read_captions(source, images, wanted.captions),
    )
    path = os.path.abspath(os.path.expanduser(source))
    if wanted.sizes:
        image_folder = path if os.path.isdir(path) else None
        samples.sizes = measured_sizes(images, wanted.index_cache_dir, image_folder)
    if wanted.records and os.path.isfile(path):
        samples.record = in_index_order(path, lambda record, _: record).__getitem__
    return samples
