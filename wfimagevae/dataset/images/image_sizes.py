"""Width and height of all images of a folder, from their headers, measured once."""

import contextlib
import hashlib
import logging
import os
from pathlib import Path

import numpy as np

from wfimagevae.dataset.images.decode import image_size
from wfimagevae.dataset.images.index import ImageIndex
from wfimagevae.dataset.shards.parallel import in_processes
from wfimagevae.files import (
    DAMAGED_ARRAYS,
    cache_folder,
    file_version,
    locked,
    may_keep,
    replacing,
)

_CHUNK = 512
_log = logging.getLogger("wfimagevae")


def measured_sizes(
    images: ImageIndex, cache_dir: str | Path | None = None, image_folder: str | None = None
) -> np.ndarray:
    """Width and height of every image, upright; only files that are new or changed are opened.

    Args:
        images: The images.
        cache_dir: Where sizes are kept between runs; None is ``wfimagevae/index`` under
            ``$XDG_CACHE_HOME`` or ``~/.cache``.
        image_folder: The user's folder of these images, if they are of one: nothing is kept in it.

    Returns:
        int32 (N, 2); 0 for a file that is missing or no image.
    """
    digest = hashlib.blake2b(os.fsencode(images.root), digest_size=16).hexdigest()
    folder = cache_folder(cache_dir, "index")
    if not may_keep(folder, [image_folder] if image_folder else [], "cache of image sizes"):
        return _sizes_of(images, None)
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder / f"{digest}.lock"))  # one process works for all
        except OSError as error:
            _log.warning("sizes are not kept: cannot write %s: %s", folder, error.strerror)
        return _sizes_of(images, folder / f"{digest}.sizes.npz")


def _sizes_of(images: ImageIndex, cache: Path | None) -> np.ndarray:
    if cache is None:
        return _measured([images.path(i) for i in range(len(images))])
    names = [images.entry(i) for i in range(len(images))]
    ids = np.array([_short_hash(name) for name in names], np.uint64)
    stamps = np.array([file_version(images.path(i)) for i in range(len(images))], np.int64)
    sizes, is_known = _known(cache, ids, stamps)
    unknown = np.flatnonzero(~is_known)
    if len(unknown):
        sizes[unknown] = _measured([images.path(int(i)) for i in unknown])
        _save(cache, ids, stamps, sizes)
    return sizes


def _short_hash(name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


def _known(cache: Path, ids: np.ndarray, stamps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sizes from the cache, and which images they are known of."""
    sizes, is_known = np.zeros((len(ids), 2), np.int32), np.zeros(len(ids), bool)
    try:
        with open(cache, "rb") as file, np.load(file) as arrays:
            old_ids, old_stamps, old_sizes = arrays["ids"], arrays["stamps"], arrays["sizes"]
    except FileNotFoundError:
        return sizes, is_known
    except DAMAGED_ARRAYS as error:
        _log.warning("image sizes in %s are unusable (%s): measured anew", cache, error)
        return sizes, is_known
    if len(old_ids):
        by_id = np.argsort(old_ids, kind="stable")
        place = by_id[np.searchsorted(old_ids[by_id], ids).clip(max=len(old_ids) - 1)]
        is_known = (old_ids[place] == ids) & (old_stamps[place] == stamps).all(axis=1)
        sizes[is_known] = old_sizes[place[is_known]]
    return sizes, is_known


def _measured(paths: list[str]) -> np.ndarray:
    chunks = [paths[i : i + _CHUNK] for i in range(0, len(paths), _CHUNK)]
    parts = in_processes(_sizes, chunks, "measure images", unit="image", unit_scale=_CHUNK)
    return np.concatenate(list(parts))


def _sizes(paths: list[str]) -> np.ndarray:
    return np.array([image_size(path) for path in paths], np.int32).reshape(-1, 2)


def _save(cache: Path, ids: np.ndarray, stamps: np.ndarray, sizes: np.ndarray) -> None:
    try:
        with replacing(cache) as file:
            np.savez_compressed(file, ids=ids, stamps=stamps, sizes=sizes)
    except OSError as error:
        _log.warning("sizes are not kept: cannot write %s: %s", cache.parent, error.strerror)
