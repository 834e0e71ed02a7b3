"""Arrays that many samples are kept in: texts in two of them, and files of them between runs."""

import contextlib
import hashlib
import json
import logging
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from wfimagevae.files import cache_folder, remove_leftovers, replacing

_BAR_FROM = 8  # fewer things need no progress bar
_Item, _Result = TypeVar("_Item"), TypeVar("_Result")
_log = logging.getLogger("wfimagevae")


class PackedTexts:
    """Byte strings by number: all of them one after another, uint8, and where each ends, int64.

    Forked workers share them without copying.
    """

    def __init__(self, text: np.ndarray, ends: np.ndarray):
        self.text, self.ends = text, ends

    @classmethod
    def pack(cls, texts: Iterable[bytes]) -> "PackedTexts":
        packed, ends = bytearray(), array("q")
        for text in texts:
            packed += text
            ends.append(len(packed))
        return cls(np.frombuffer(packed, np.uint8), np.frombuffer(ends, np.int64))

    @classmethod
    def concatenate(cls, parts: Sequence["PackedTexts"]) -> "PackedTexts":
        ends, first, start = np.empty(sum(map(len, parts)), np.int64), 0, 0
        for part in parts:
            ends[first : first + len(part)] = part.ends
            ends[first : first + len(part)] += start
            first, start = first + len(part), start + len(part.text)
        return cls(np.concatenate([part.text for part in parts]), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> bytes:
        start = self.ends[i - 1] if i else 0
        return self.text[start : self.ends[i]].tobytes()

    def _starts(self, rows: np.ndarray) -> np.ndarray:
        return np.where(rows > 0, self.ends[rows - 1], 0)

    def select(self, indices: Sequence[int]) -> "PackedTexts":
        """Some of them, in any order; the same pack if it is all."""
        is_all = len(indices) == len(self) and np.array_equal(indices, np.arange(len(self)))
        return self if is_all else PackedTexts.pack(map(self.__getitem__, indices))

    def argsort(self) -> np.ndarray:
        """The numbers in the order of the texts' bytes, those of equal ones increasing, int64 (N,).

        No text may hold a zero byte.
        """
        rows = np.arange(len(self))
        lengths = self.ends - self._starts(rows)
        padded = np.append(self.text, np.zeros(8, np.uint8))
        words = np.ndarray(len(self.text) + 1, ">u8", padded, strides=(1,))
        # A radix sort: by the last 8 bytes first. Texts that end before them stay in front.
        for first in range((int(lengths.max(initial=1)) - 1) // 8 * 8, -1, -8):
            is_longer = lengths[rows] > first
            longer = rows[is_longer]
            beyond = 8 * (first + 8 - lengths[longer]).clip(min=0).astype(np.uint64)
            keys = words[self._starts(longer) + first] >> beyond << beyond
            rows = np.concatenate([rows[~is_longer], longer[np.argsort(keys, kind="stable")]])
        return rows


class IndexCache:
    """Arrays by key, a file each, that hold for one version of what they were made from.

    ``what`` names the arrays in messages, and their sub-folder of ``cache_dir`` (None as for
    `cache_folder`). Nothing is written into ``sources``, the user's folders of images or shards. A
    cache that cannot be used is warned of once and done without.
    """

    def __init__(self, cache_dir: str | Path | None, what: str, sources: Iterable[str] = ()):
        self.folder = cache_folder(cache_dir, "index") / what.replace(" ", "_")
        self._what, self._is_on = what, True
        place = self.folder.resolve()
        if any(place.is_relative_to(Path(source).resolve()) for source in sources):
            self._turn_off(f"{place} lies inside the image folder")

    @contextlib.contextmanager
    def locked(self, key: str = "") -> Iterator[None]:
        """Holds a key, or the whole cache, while one process of the machine does the work."""
        with contextlib.ExitStack() as stack:
            if self._is_on:
                try:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(FileLock(self._path(key).with_suffix(".lock")))
                except OSError as error:
                    self._turn_off(f"cannot write {self.folder}: {error.strerror}")
            yield

    def load(self, key: str, version: Any, read: Callable[[Mapping], _Result]) -> _Result | None:
        """``read(arrays)`` of what was kept under a key; None if nothing of this version was."""
        path = self._path(key)
        try:
            with open(path, "rb") as file, np.load(file) as arrays:
                return read(arrays) if from_json_array(arrays["version"]) == version else None
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:  # a file that is no longer whole can make anything fail
            _log.warning("cached %s in %s are unusable (%s): made anew", self._what, path, error)
            return None

    def save(self, key: str, version: Any, arrays: Mapping[str, np.ndarray]) -> None:
        """Keeps arrays under a key, as of a version: any JSON value."""
        if not self._is_on:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path, arrays = self._path(key), {"version": json_array(version), **arrays}
            remove_leftovers(self.folder)
            with replacing(path) as file:
                np.savez_compressed(file, **arrays)
        except OSError as error:
            self._turn_off(f"cannot write {self.folder}: {error.strerror}")

    def _turn_off(self, reason: str) -> None:
        _log.warning("cache of %s off: %s", self._what, reason)
        self._is_on = False

    def _path(self, key: str) -> Path:
        digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16)
        return self.folder / f"{digest.hexdigest()}.npz"


def json_array(value: Any) -> np.ndarray:
    """A JSON value as an array, uint8, so that it can stand in a file of arrays."""
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def from_json_array(array: np.ndarray) -> Any:
    return json.loads(array.tobytes())


def in_processes(
    work: Callable[[_Item], _Result], items: Sequence[_Item], description: str, **bar
) -> Iterator[_Result]:
    """``work(item)`` of each item, in order, by as many processes as there are cores.

    Only a terminal gets the progress bar, whose options, such as ``unit``, are the last arguments.
    """
    can_tell = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if can_tell else os.cpu_count() or 1
    with contextlib.ExitStack() as stack:
        results = map(work, items)
        if min(len(items), cores) > 1:  # the pool comes first: it forks, and a bar starts a thread
            pool = stack.enter_context(ProcessPoolExecutor(min(len(items), cores)))
            results = pool.map(work, items)
        is_quiet = True if len(items) < _BAR_FROM else None
        yield from tqdm(results, description, len(items), disable=is_quiet, **bar)
