"""Batches of images of one size, of many sizes: aspect-ratio buckets and scaled-down copies."""

import itertools
import logging
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from wfimagevae.dataset.options import StreamOptions
from wfimagevae.dataset.order import Order, recent, shuffled

MAX_RATIO = 4  # long side by short side of a bucket
_TOLD = 12  # buckets that the log lists
_log = logging.getLogger("wfimagevae")


def bucket_sizes(
    sizes: np.ndarray, resolution: int, multiple: int = 0, short_side: int | None = None
) -> np.ndarray:
    """The size of the bucket of each image, at constant area or scaled to a short side.

    Args:
        sizes: Width and height of the images, (N, 2).
        resolution: Side of the square whose area the samples have, in pixels.
        multiple: Sides are multiples of this many pixels, as near as that gets to an image's own
            shape, or to `MAX_RATIO` for an image that is longer; 0 makes squares only.
        short_side: Of the scaled images, in pixels.

    Returns:
        Height and width, int64 (N, 2).
    """
    if not multiple:
        return np.full(sizes.shape, short_side or resolution, np.int64)
    sizes = _shortened(sizes)
    if short_side:
        scale = short_side / sizes.min(axis=1)
    else:
        scale = resolution / np.sqrt(sizes.astype(np.float64).prod(axis=1))
    scaled = sizes[:, ::-1] * scale[:, None] / multiple
    # Halves go up (np.round would send them to even numbers).
    counts = np.maximum(np.floor(scaled + 0.5), 1).astype(np.int64)
    return _shortened(counts) * multiple


def _shortened(sizes: np.ndarray) -> np.ndarray:
    """Sizes whose long side is cut where it is more than `MAX_RATIO` short ones."""
    return np.minimum(sizes, MAX_RATIO * sizes.min(axis=1, keepdims=True))


def assign_buckets(
    sizes: np.ndarray, options: StreamOptions, source: str
) -> dict[tuple[int, int], np.ndarray]:
    """The images of every bucket: (height, width) -> their numbers, increasing.

    ``sizes`` are width and height, int32 (N, 2). An image is also in the bucket of each reduced
    size that is smaller than its short side in the first one. Those without a readable header, and
    those too small for their bucket, unless crops enlarge, are in none; how many, of each, is
    logged. ValueError if none is in any, and for options that do not go together.
    """
    resolution, multiple = options.resolution, options.aspect_buckets
    if multiple > resolution:
        raise ValueError(
            f"aspect_buckets must be 0 (off) to the resolution, {resolution}, got {multiple}"
        )
    reduced, step = options.reduced_min_sizes, multiple or 1
    if bad := [side for side in reduced if side % step or side > resolution]:
        raise ValueError(
            f"reduced_min_sizes must be multiples of {step} up to the resolution, {resolution}, "
            f"got {', '.join(map(str, bad))}"
        )
    if reduced and options.train_crop == "native":
        raise ValueError(
            "--reduced_min_sizes scales images down, --train_crop native never does: use resized "
            "or center"
        )
    usable = np.flatnonzero(sizes.min(axis=1) > 0)
    if not len(usable):
        raise ValueError(f"{source}: none of {len(sizes)} images is readable: check the image path")
    if len(usable) < len(sizes):
        unreadable = len(sizes) - len(usable)
        _log.warning("%s: %d images are unreadable: left out", source, unreadable)
    # Each image has a target at constant area, and one a reduced size that is smaller.
    sizes = sizes[usable]
    full_size = bucket_sizes(sizes, resolution, multiple)
    targets = [full_size]
    for short_side in reduced:
        smaller = bucket_sizes(sizes, resolution, multiple, short_side)
        is_new = smaller.min(axis=1) < full_size.min(axis=1)
        targets.append(np.where(is_new[:, None], smaller, 0))
    # Leave out what would have to be enlarged.
    rows = []  # height, width, number
    for target in targets:
        fits = (target > 0).all(axis=1)
        if options.train_crop != "center":
            fits &= (target <= sizes[:, ::-1]).all(axis=1)
        if target is full_size and not fits.all():
            left_out = len(fits) - int(fits.sum())
            _log.warning("%s: %d images are smaller than their bucket: left out", source, left_out)
        rows.append(np.column_stack([target[fits], usable[fits]]))
    rows = np.concatenate(rows)
    if not len(rows):
        raise ValueError(f"{source}: every image is smaller than its bucket; lower --resolution")
    # Sort by bucket, then by number. A reduced picture may fall into a bucket twice, at two short
    # sides that round to one size.
    rows = rows[np.lexsort(rows.T[::-1])]
    rows = rows[np.append(True, np.diff(rows, axis=0).any(axis=1))]
    firsts = np.flatnonzero(np.diff(rows[:, :2], axis=0).any(axis=1)) + 1
    buckets = {tuple(part[0, :2].tolist()): part[:, 2].copy() for part in np.split(rows, firsts)}
    # Tell of the largest ones.
    largest = sorted(buckets.items(), key=lambda item: -len(item[1]))[:_TOLD]
    text = ", ".join(f"{width}x{height}: {len(own)}" for (height, width), own in largest)
    more = f" and {len(buckets) - _TOLD} more" if len(buckets) > _TOLD else ""
    _log.info("%s: %d sizes (width x height: images): %s", source, len(buckets), text + more)
    return buckets


class BucketOrder(Order):
    """Aligned blocks of ``batch_size`` positions, each of one bucket, without end.

    Every bucket is an endless stream of its own shuffles, cut into blocks. Epoch e deals bucket b
    ``floor((e + 1) n_b / B) - floor(e n_b / B)`` blocks, in random order: so nothing is dropped,
    however small the bucket, and no image comes again before its bucket's other images have.

    ``batch_size`` is that of each rank; ``make_order`` makes an `Order` of 0 to n_b - 1 from the
    numbers of a bucket's n_b images.
    """

    def __init__(
        self,
        buckets: dict[tuple[int, int], np.ndarray],
        batch_size: int,
        seed: int,
        make_order: Callable[[np.ndarray], Order],
    ):
        self.sizes = list(buckets)
        self._members = [buckets[size] for size in self.sizes]
        self._orders = [make_order(members) for members in self._members]
        self._counts = [len(members) for members in self._members]
        self.batch_size, self.seed = batch_size, seed
        self.num_items = sum(self._counts)
        self.facts = {"batch_size": batch_size}
        for order in self._orders:  # a large bucket has one more
            self.facts |= order.facts
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._last = (-1, 0, 0)

    def resume(self, facts: Mapping[str, Any]) -> None:
        super().resume(facts)
        for order in self._orders:
            order.resume(facts)

    def size(self, position: int) -> tuple[int, int]:
        return self.sizes[self._place(position)[0]]

    def index(self, position: int) -> int:
        bucket, place = self._place(position)
        return int(self._members[bucket][self._orders[bucket].index(place)])

    def candidates(self, position: int) -> Iterator[int]:
        """The image at ``position``, the next ones of its bucket, then those of all others."""
        bucket, place = self._place(position)
        members, order = self._members[bucket], self._orders[bucket]
        # Two epochs show every image, whichever was the first.
        for later in range(place, place + 2 * len(members)):
            yield int(members[order.index(later)])
        others = itertools.chain.from_iterable(self._members)
        yield from (int(index) for index in others)

    def _place(self, position: int) -> tuple[int, int]:
        block, i = divmod(position, self.batch_size)
        if block != self._last[0]:  # all positions of a batch are in one block
            epoch = self._epoch(block)
            buckets, ordinals = recent(self._epochs, epoch, lambda: self._dealt(epoch))
            j = block - self._blocks_before(epoch)
            self._last = block, int(buckets[j]), int(ordinals[j])
        _, bucket, ordinal = self._last
        return bucket, ordinal * self.batch_size + i

    def _blocks_before(self, epoch: int) -> int:
        return sum(epoch * count // self.batch_size for count in self._counts)

    def _epoch(self, block: int) -> int:
        high = block * self.batch_size // self.num_items + 1
        # An epoch deals at most one block a bucket less than its share.
        while self._blocks_before(high) <= block:
            high += len(self._counts) * self.batch_size // self.num_items + 1
        epochs = range(high + 1)
        return bisect_right(epochs, block, key=self._blocks_before) - 1

    def _dealt(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The bucket of each block of an epoch, and which block of that bucket it is."""
        size = self.batch_size
        spans = [(epoch * n // size, (epoch + 1) * n // size) for n in self._counts]
        blocks = np.repeat(np.arange(len(spans)), [last - first for first, last in spans])
        blocks = blocks[shuffled(len(blocks), self.seed, "blocks", epoch)]
        ordinals = np.empty(len(blocks), np.int64)
        for bucket, span in enumerate(spans):  # a bucket's own blocks stay in their order
            ordinals[blocks == bucket] = np.arange(*span)
        return blocks, ordinals
