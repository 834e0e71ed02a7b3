"""The order in which training reads images: a pure function of (seed, position)."""

import hashlib

import numpy as np


def stable_seed(*parts: int | str) -> int:
    """A 128-bit seed made from ``parts`` alone: the same on every machine and in every process."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


class ShuffledOrder:
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
            self._epochs[epoch] = self._permutation(epoch)
        return int(self._epochs[epoch][i])

    def _permutation(self, epoch: int) -> np.ndarray:
        # NumPy guarantees a bit generator's raw stream between versions, but not `permutation`.
        keys = np.random.Philox(key=stable_seed(self.seed, "epoch", epoch))
        order = np.argsort(keys.random_raw(self.num_items), kind="stable")
        return order.astype(np.uint32 if self.num_items < 2**32 else np.uint64)
