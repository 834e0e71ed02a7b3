"""Width and height of all images of a folder, from their headers, measured once."""

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from wfimagevae.dataset.images.decode import image_size
from wfimagevae.dataset.images.index import ImageIndex
from wfimagevae.dataset.index_cache import IndexCache, in_processes
from wfimagevae.files import file_version

_VERSION = 2
_CHUNK = 512


def measured_sizes(
    images: ImageIndex, cache_dir: str | Path | None = None, image_folder: str | None = None
) -> np.ndarray:
    """Width and height of every image, upright, int32 (N, 2); 0 for a file that is no image.

    Only files that are new or changed are opened. Nothing is kept in ``image_folder``, the user's
    folder of these images, if they are of one.
    """
    cache = IndexCache(cache_dir, "image sizes", [image_folder] if image_folder else [])
    paths = [images.path(i) for i in range(len(images))]
    digests = (hashlib.blake2b(images.entry(i), digest_size=8) for i in range(len(images)))
    ids = np.array([int.from_bytes(digest.digest(), "little") for digest in digests], np.uint64)
    stamps = np.array([file_version(path) for path in paths], np.int64)
    read = functools.partial(_look_up, ids, stamps)
    with cache.locked(images.root):  # one process works for all
        sizes, is_known = cache.load(images.root, _VERSION, read) or _nothing_known(len(images))
        unknown = np.flatnonzero(~is_known)
        if len(unknown):
            chunks = [
                [paths[i] for i in unknown[first : first + _CHUNK]]
                for first in range(0, len(unknown), _CHUNK)
            ]
            options = {"unit": "image", "unit_scale": _CHUNK}
            parts = in_processes(_measured, chunks, "measure images", **options)
            sizes[unknown] = np.concatenate(list(parts))
            arrays = {"ids": ids, "stamps": stamps, "sizes": sizes}
            cache.save(images.root, _VERSION, arrays)
    return sizes


def _nothing_known(count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((count, 2), np.int32), np.zeros(count, bool)


def _look_up(
    ids: np.ndarray, stamps: np.ndarray, arrays: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    old_ids, old_stamps, old_sizes = arrays["ids"], arrays["stamps"], arrays["sizes"]
    sizes, is_known = _nothing_known(len(ids))
    if len(old_ids):
        by_id = np.argsort(old_ids, kind="stable")
        place = by_id[np.searchsorted(old_ids[by_id], ids).clip(max=len(old_ids) - 1)]
        is_known = (old_ids[place] == ids) & (old_stamps[place] == stamps).all(axis=1)
        sizes[is_known] = old_sizes[place[is_known]]
    return sizes, is_known


def _measured(paths: list[str]) -> np.ndarray:
    return np.array([image_size(path) for path in paths], np.int32).reshape(-1, 2)
