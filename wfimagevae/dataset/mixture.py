"""Several data sets in one run, dealt by their weights."""

import itertools
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from wfimagevae.dataset.protocol import TrainData

_PRECISION = 10**6


class Mixture(TrainData):
    """Data sets that take turns, each in its own order, by weight; see `TrainData`.

    After any number of blocks each set has had its share of them, to within less than one a set
    (rounding is nested: the first set against all others, the second against the rest ...). Which
    set a block comes from, and where that set stands, follow from the block's number alone. With
    the sets' sizes as weights (None), every sample comes once an epoch.

    The sets are of one kind and have the same classes. Weights count to the nearest fraction with a
    denominator of up to a million. ``block_size`` positions in a row come from one set: 1, or the
    batch size where a batch must come from one set.
    """

    def __init__(
        self,
        parts: Sequence[TrainData],
        weights: Sequence[float] | None = None,
        block_size: int = 1,
    ):
        self.parts, self.block_size = list(parts), block_size
        first = self.parts[0]
        for part, name in itertools.product(
            self.parts, ("data_key", "sample_shape", "class_names")
        ):
            ours, theirs = getattr(first, name), getattr(part, name)
            if ours != theirs:
                raise ValueError(
                    f"data sets of one run must have the same {name}, got {ours!r:.80} and "
                    f"{theirs!r:.80}"
                )
        self.seed, self.data_key = first.seed, first.data_key
        self.sample_shape, self.class_names = first.sample_shape, first.class_names
        self.has_captions = any(part.has_captions for part in self.parts)
        shares = [Fraction(len(part)) for part in parts] if weights is None else _shares(weights)
        # The first set against all others, the second against the rest, and so on.
        left = [sum(shares[i:]) for i in range(len(shares))]
        self._ratios = [share / rest for share, rest in zip(shares, left, strict=True)]
        self._weights = None if weights is None else [float(weight) for weight in weights]

    @property
    def order_facts(self) -> dict[str, Any]:
        """Those of the sets, told apart where they differ, and the weights."""
        facts: dict[str, Any] = {}
        for number, part in enumerate(self.parts, 1):
            for key, value in part.order_facts.items():
                if facts.setdefault(key, value) != value:
                    facts[f"{key} of set {number}"] = value
        return facts | {"data_weights": self._weights}

    def resume_order(self, facts: Mapping[str, Any]) -> None:
        for part in self.parts:
            part.resume_order(facts)

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return sorted({size for part in self.parts for size in part.sizes})

    def place(self, position: int) -> tuple[int, int]:
        """The set that a position belongs to, and the position in that set."""
        block, i = divmod(position, self.block_size)
        for number, ratio in enumerate(self._ratios):
            mine = block * ratio.numerator // ratio.denominator
            if (block + 1) * ratio.numerator // ratio.denominator > mine:
                return number, mine * self.block_size + i
            block -= mine
        raise AssertionError("the last set takes what is left")

    def read_batch(self, positions: list[int]) -> dict[str, Any]:
        places = [self.place(position) for position in positions]
        order: list[int] = []
        batches = []
        for number, part in enumerate(self.parts):
            rows = [row for row, (owner, _) in enumerate(places) if owner == number]
            if rows:
                batch = part.read_batch([places[row][1] for row in rows])
                if self.has_captions:
                    batch.setdefault("caption", [""] * len(rows))
                batches.append(batch)
                order += rows
        back = sorted(range(len(order)), key=order.__getitem__)
        return {key: _joined([batch[key] for batch in batches], key, back) for key in batches[0]}


def _shares(weights: Sequence[float]) -> list[Fraction]:
    shares = [Fraction(weight).limit_denominator(_PRECISION) for weight in weights]
    if min(shares) <= 0:
        raise ValueError(
            f"weights of data sets are at least a millionth, got {list(weights)}: multiply them "
            "all by the same number, or leave the set out"
        )
    return shares


def _joined(values: list, key: str, back: list[int]) -> Tensor | list:
    if torch.is_tensor(values[0]):
        return torch.cat(values)[back] if len(values) > 1 else values[0]
    flat = [value for part in values for value in part]
    return flat if key == "unreadable" else [flat[row] for row in back]
