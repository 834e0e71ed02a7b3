"""The order in which training reads images: a pure function of (seed, position)."""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

LARGEST_ARRAY = 2**23  # items that are shuffled in memory


def stable_seed(*parts: int | str) -> int:
    """A 128-bit seed made from ``parts`` alone: the same on every machine and in every process."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def shuffled(num_items: int, *seed: int | str) -> np.ndarray:
    """The numbers 0 to num_items - 1 in a random order that depends on ``seed`` alone."""
    # NumPy guarantees a bit generator's raw stream between versions, but not `permutation`.
    keys = np.random.Philox(key=stable_seed(*seed)).random_raw(num_items)
    return np.argsort(keys, kind="stable").astype(np.uint32 if num_items < 2**32 else np.uint64)


def permuted(i: int, num_items: int, keys: Sequence[int]) -> int:
    """Where a random permutation of 0 to num_items - 1 takes ``i``, without the memory of an array.

    A Feistel network with a round for each of an even number of keys, of 64 bits, permutes the
    numbers below the next power of two, until it comes to one below ``num_items``: twice at most on
    average. A round is `mixed`.

    Sources: Luby and Rackoff 1988, doi:10.1137/0217022; Black and Rogaway 2002, "Ciphers with
    arbitrary finite domains" (cycle walking); Steele, Lea and Flood 2014,
    doi:10.1145/2660193.2660195.
    """
    bits = (num_items - 1).bit_length()
    low = bits // 2
    high_mask, low_mask = (1 << bits - low) - 1, (1 << low) - 1
    while True:
        left, right = i >> low, i & low_mask
        for first, second in zip(keys[::2], keys[1::2], strict=True):
            left ^= mixed(right ^ first) & high_mask
            right ^= mixed(left ^ second) & low_mask
        i = left << low | right
        if i < num_items:
            return i


def mixed(z: Any) -> Any:
    """The finalizer of SplitMix64, of 64 bits: of an int, or of each number in a uint64 array."""
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    z = (z ^ z >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return z ^ z >> 31


def recent(cache: dict, key: Any, make: Callable[[], Any]) -> Any:
    """``make()``, kept under a key with the entry before it: a batch may straddle two."""
    if key not in cache:
        for old in list(cache)[:-1]:
            del cache[old]
        cache[key] = make()
    return cache[key]


class Order:
    """Which image stands at which data position, from 0 on without end.

    An epoch has ``num_items`` positions. ``facts`` are what the order depends on besides seed and
    images: positions of one run mean nothing to an order with other facts. ``sizes`` are height and
    width of all samples, where they are not the data set's own; then ``size(position)`` is one's.
    """

    num_items: int
    sizes: Sequence[tuple[int, int]] = ()
    facts: dict[str, Any] = {}  # noqa: RUF012 - never written to

    def index(self, position: int) -> int:
        raise NotImplementedError

    def resume(self, facts: Mapping[str, Any]) -> None:
        """Takes up the order of a run with these facts: older ones had arrays of every size."""
        if "permutation" not in facts:
            self.facts.pop("permutation", None)

    def candidates(self, position: int) -> Iterator[int]:
        """The image at ``position``, then those that stand in for it if it cannot be read."""
        return map(self.index, itertools.count(position))


@dataclass(eq=False)
class ShuffledOrder(Order):
    """An endless order of ``num_items`` things, in which every epoch is a fresh shuffle.

    Position k is item i of epoch e with ``e, i = divmod(k, num_items)``: whoever knows one
    integer knows where the data stands, whatever the number of ranks and workers. More than
    `LARGEST_ARRAY` items are `permuted` one by one, and the ``facts`` say so.
    """

    num_items: int
    seed: int
    _epochs: dict[int, np.ndarray] = field(default_factory=dict)
    _keys: dict[int, list[int]] = field(default_factory=dict)

    @cached_property
    def facts(self) -> dict[str, str]:
        return {"permutation": "feistel"} if self.num_items > LARGEST_ARRAY else {}

    def index(self, position: int) -> int:
        epoch, i = divmod(position, self.num_items)
        if "permutation" in self.facts:
            return permuted(i, self.num_items, recent(self._keys, epoch, lambda: self._draw(epoch)))
        items = lambda: shuffled(self.num_items, self.seed, "epoch", epoch)  # noqa: E731
        return int(recent(self._epochs, epoch, items)[i])

    def _draw(self, epoch: int) -> list[int]:
        key = stable_seed(self.seed, "permutation", epoch)
        return np.random.Philox(key=key).random_raw(6).tolist()


class ShardOrder(Order):
    """An endless order that shuffles files, then what lies in a few neighbouring files together.

    Every epoch shows every item once. Only the ``group_size`` files of one group are read at a time
    (two groups, where a batch straddles them), so that each can be fetched, read and given up. To
    find an item costs a shuffle of its group at most, never one of the epoch.

    ``files`` are the numbers, increasing, of the file that each item lies in, out of ``num_files``
    that may have none. Orders of one seed and number of files take them alike.
    """

    def __init__(self, files: np.ndarray, seed: int, group_size: int, num_files: int = 0):
        self.num_items, self.seed, self.group_size = len(files), seed, group_size
        self._counts = np.bincount(files, minlength=num_files)
        self.facts = {"wds_shuffle_shards": group_size}
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._groups: dict[tuple[int, int], np.ndarray] = {}

    def index(self, position: int) -> int:
        epoch, i = divmod(position, self.num_items)
        files, ends = recent(self._epochs, epoch, lambda: self._files(epoch))
        group = int(np.searchsorted(ends, i, side="right"))
        first = int(ends[group - 1]) if group else 0
        items = recent(self._groups, (epoch, group), lambda: self._items(epoch, group, files))
        return int(items[i - first])

    def _files(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        files = shuffled(len(self._counts), self.seed, "files", epoch).astype(np.int64)
        last = np.arange(self.group_size - 1, len(files) + self.group_size - 1, self.group_size)
        return files, np.cumsum(self._counts[files])[last.clip(max=len(files) - 1)]

    def _items(self, epoch: int, group: int, files: np.ndarray) -> np.ndarray:
        files = files[group * self.group_size :][: self.group_size]
        starts = np.cumsum(self._counts) - self._counts
        items = np.concatenate([starts[f] + np.arange(self._counts[f]) for f in files])
        return items[shuffled(len(items), self.seed, "items", epoch, group)]
