"""Two-dimensional distributions, of which every position is a fresh point."""

import math
from typing import Any

import numpy as np
import torch

from wfimagevae.dataset.order import mixed, stable_seed
from wfimagevae.dataset.protocol import TrainData

# At this radius of the five modes, raw N(0, 1) noise scores an energy distance of 0.320.
FIVE_GAUSSIANS_RADIUS = 2.09
FIVE_GAUSSIANS_STD = 0.1
_RINGS = (0.6, 1.2, 1.8)
_RINGS_STD = 0.05
_MOONS_STD = 0.08
_GOLDEN = 0x9E3779B97F4A7C15
_DRAWS = 4  # random numbers a point


def five_gaussians(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Five equal normal modes of standard deviation 0.1 on a circle, the first at the top.

    This and the other distributions map uniform numbers in (0, 1), (N, 4), to points, (N, 2), and
    the number of each point's mode, (N,).
    """
    mode = (5 * u[:, 0]).astype(np.int64)
    angle = math.pi / 2 + 2 * math.pi * mode / 5
    centre = FIVE_GAUSSIANS_RADIUS * np.stack([np.cos(angle), np.sin(angle)], 1)
    return centre + FIVE_GAUSSIANS_STD * _normal(u[:, 1:3]), mode


def moons(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two interleaved half circles, with noise of standard deviation 0.08, centred at 0."""
    mode = (2 * u[:, 0]).astype(np.int64)
    angle = math.pi * u[:, 1]
    sign = 1 - 2 * mode  # the second moon is the first, turned about the centre
    x, y = np.cos(angle) - 0.5, np.sin(angle) - 0.25
    return 1.2 * np.stack([sign * x, sign * y], 1) + _MOONS_STD * _normal(u[:, 2:4]), mode


def checkerboard(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Uniform on the eight dark squares of a board of 4 x 4 between -2 and 2; no modes."""
    column = np.floor(4 * u[:, 0])
    row = 2 * np.floor(2 * u[:, 1]) + column % 2
    corner = np.stack([column, row], 1) - 2
    return corner + u[:, 2:4], np.zeros(len(u), np.int64)


def rings(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Three concentric circles, equally likely, with noise of standard deviation 0.05."""
    mode = (3 * u[:, 0]).astype(np.int64)
    angle = 2 * math.pi * u[:, 1]
    radius = np.array(_RINGS)[mode][:, None]
    circle = radius * np.stack([np.cos(angle), np.sin(angle)], 1)
    return circle + _RINGS_STD * _normal(u[:, 2:4]), mode


# The function of each, and the names of its modes.
DISTRIBUTIONS = {
    "five_gaussians": (five_gaussians, tuple(f"mode {i}" for i in range(5))),
    "moons": (moons, ("upper moon", "lower moon")),
    "checkerboard": (checkerboard, ()),
    "rings": (rings, ("inner ring", "middle ring", "outer ring")),
}


class PointDataset(TrainData):
    """Fresh points of a 2-D distribution: no position repeats another's. See `TrainData`.

    ``name`` is one of `DISTRIBUTIONS`, whose modes are the classes; ``num_items`` points count as
    an epoch; the split ``test`` has other points of the same distribution than ``train``.
    """

    data_key, sample_shape = "point", (2,)

    def __init__(self, name: str, seed: int = 1234, num_items: int = 100_000, split: str = "train"):
        self.name, self.seed, self.num_items = name, seed, num_items
        self._draw, names = DISTRIBUTIONS[name]
        self.class_names = list(names)
        self._key = stable_seed(seed, name, split) % 2**64

    def __len__(self) -> int:
        return self.num_items

    def read_batch(self, positions: list[int]) -> dict[str, Any]:
        """``point`` float32 (B, 2) and, where there are modes, ``label`` int64 (B,)."""
        points, modes = self._draw(_uniform(self._key, positions))
        batch = {"point": torch.from_numpy(points.astype(np.float32))}
        return batch | {"label": torch.from_numpy(modes)} if self.num_classes else batch


def _uniform(key: int, positions: list[int]) -> np.ndarray:
    """Numbers in (0, 1), (N, 4), each a function of the key and its position alone.

    SplitMix64, whose n-th number needs no earlier one: a generator for each position would take
    a hundred times as long.

    Source: Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195.
    """
    counter = np.asarray(positions, np.uint64)[:, None] * np.uint64(_DRAWS)
    z = (counter + np.arange(1, _DRAWS + 1, dtype=np.uint64)) * np.uint64(_GOLDEN) + np.uint64(key)
    return ((mixed(z) >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53


def _normal(u: np.ndarray) -> np.ndarray:
    """Two standard normal numbers, (N, 2), from two uniform ones in (0, 1): Box-Muller."""
    radius = np.sqrt(-2 * np.log(u[:, 0]))
    angle = 2 * math.pi * u[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
