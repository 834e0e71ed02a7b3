"""The order in which training reads images: a pure function of (seed, position)."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np


def stable_seed(*parts: int | str) -> int:
    """A 128-bit seed made from ``parts`` alone: the same on every machine and in every process."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def shuffled(num_items: int, *seed: int | str) -> np.ndarray:
    """The numbers 0 to num_items - 1 in a random order that depends on ``seed`` alone."""
    # NumPy guarantees a bit generator's raw stream between versions, but not `permutation`.
    keys = np.random.Philox(key=stable_seed(*seed)).random_raw(num_items)
    return np.argsort(keys, kind="stable").astype(np.uint32 if num_items < 2**32 else np.uint64)


class Order:
    """Which image stands at which data position, from 0 on without end.

    Attributes:
        num_items: Length of an epoch, in positions.
        facts: Plain values that the order depends on besides seed and images; positions of one
            run mean nothing to an order with other facts.
        sizes: Height and width of all samples, where they are not the data set's own.
    """

    num_items: int
    sizes: Sequence[tuple[int, int]] = ()
    facts: dict[str, Any] = {}  # noqa: RUF012 - never written to

    def index(self, position: int) -> int:
        """The image at ``position``."""
        raise NotImplementedError

    def candidates(self, position: int) -> Iterator[int]:
        """The image at ``position``, then those that stand in for it if it cannot be read."""
        return (self.index(later) for later in itertools.count(position))

    def size(self, position: int) -> tuple[int, int] | None:
        """Height and width of the sample at ``position``, where it is not the data set's own."""
        return None


class ShuffledOrder(Order):
    """An endless order of ``num_items`` things, in which every epoch is a fresh shuffle.

    Position k is item i of epoch e with ``e, i = divmod(k, num_items)``: whoever knows one
    integer knows where the data stands, whatever the number of ranks and workers.
    """

    def __init__(self, num_items: int, seed: int):
        if num_items < 1:
            raise ValueError(f"an order needs at least one item, got {num_items}")
        self.num_items, self.seed = num_items, seed
        self._epochs: dict[int, np.ndarray] = {}

    def index(self, position: int) -> int:
        """The item at ``position`` (any integer from 0 on), in 0 to num_items - 1."""
        if position < 0:
            raise ValueError(f"a data position is 0 or more, got {position}")
        epoch, i = divmod(position, self.num_items)
        if epoch not in self._epochs:
            # A batch may straddle two epochs, so the one before stays.
            self._epochs = {e: p for e, p in self._epochs.items() if e == epoch - 1}
            self._epochs[epoch] = shuffled(self.num_items, self.seed, "epoch", epoch)
        return int(self._epochs[epoch][i])


class ShardOrder(Order):
    """An endless order that shuffles files, then what lies in a few neighbouring files together.

    Every epoch shows every item once. Only the files of one group are read at a time (two, where
    a batch straddles groups), so that each can be fetched, read and given up. To find an item
    costs a shuffle of its group at most, never one of the epoch.

    Args:
        files: Number of the file that each item lies in, increasing.
        seed: Of the order. Orders of one seed and number of files take files in the same order.
        group_size: Files that are shuffled together.
        num_files: How many there are, also those without an item.
    """

    def __init__(self, files: np.ndarray, seed: int, group_size: int, num_files: int = 0):
        if group_size < 1:
            raise ValueError(f"a group needs at least one file, got {group_size}")
        self.num_items, self.seed, self.group_size = len(files), seed, group_size
        if not len(files):
            raise ValueError("an order needs at least one item, got 0")
        self._counts = np.bincount(files, minlength=num_files)
        self._starts = np.cumsum(self._counts) - self._counts
        self.facts = {"wds_shuffle_shards": group_size}
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._groups: dict[tuple[int, int], np.ndarray] = {}

    def index(self, position: int) -> int:
        """The item at ``position`` (any integer from 0 on), in 0 to num_items - 1."""
        if position < 0:
            raise ValueError(f"a data position is 0 or more, got {position}")
        epoch, i = divmod(position, self.num_items)
        files, ends = self._files(epoch)
        group = int(np.searchsorted(ends, i, side="right"))
        first = int(ends[group - 1]) if group else 0
        return int(self._group(epoch, group, files)[i - first])

    def _files(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The files of an epoch in turn, and where each of its groups ends."""
        if epoch not in self._epochs:
            files = shuffled(len(self._counts), self.seed, "files", epoch).astype(np.int64)
            ends = np.cumsum(self._counts[files])
            last = np.arange(self.group_size - 1, len(files) + self.group_size - 1, self.group_size)
            self._epochs = {e: p for e, p in self._epochs.items() if e == epoch - 1}
            self._epochs[epoch] = files, ends[last.clip(max=len(files) - 1)]
        return self._epochs[epoch]

    def _group(self, epoch: int, group: int, files: np.ndarray) -> np.ndarray:
        """The items of a group, shuffled."""
        key = (epoch, group)
        if key not in self._groups:
            mine = files[group * self.group_size :][: self.group_size]
            items = np.concatenate(
                [np.arange(self._starts[f], self._starts[f] + self._counts[f]) for f in mine]
            )
            self._groups = dict(list(self._groups.items())[-1:])  # a batch may straddle two
            self._groups[key] = items[shuffled(len(items), self.seed, "items", epoch, group)]
        return self._groups[key]
