"""Coloured shapes, drawn on the fly: labelled and captioned images without a download."""

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from wfimagevae.dataset.images.transforms import mirror_half
from wfimagevae.dataset.order import ShuffledOrder, stable_seed
from wfimagevae.dataset.protocol import TrainData
from wfimagevae.dataset.text.captions import with_prefix

COLOURS = {
    "red": (225, 45, 45),
    "orange": (245, 140, 25),
    "yellow": (245, 225, 60),
    "green": (60, 180, 75),
    "cyan": (70, 215, 225),
    "blue": (60, 100, 235),
    "purple": (150, 70, 200),
    "pink": (250, 150, 200),
}
_SUPERSAMPLING = 4
_MAX_TILT = math.radians(15)
_RADII = (0.26, 0.40)  # of the image's side
_BACKGROUND = (15, 80)  # gray levels

Outline = list[tuple[float, float]]  # x to the right, y down, within the unit circle


def _star(points: int = 5, inner: float = 0.42) -> Outline:
    radii = (1.0, inner) * points
    turns = [math.pi * i / points for i in range(2 * points)]
    return [(r * math.sin(a), -r * math.cos(a)) for r, a in zip(radii, turns, strict=True)]


def _cross(half: float = 0.3) -> Outline:
    long = math.sqrt(1 - half * half)
    arm = [(half, -half), (long, -half), (long, half)]
    turned = [arm, [(-y, x) for x, y in arm], [(-x, -y) for x, y in arm], [(y, -x) for x, y in arm]]
    return [corner for corners in turned for corner in corners]


def _heart(corners: int = 48) -> Outline:
    turns = [2 * math.pi * i / corners for i in range(corners)]
    curve = [
        (
            16 * math.sin(a) ** 3,
            -13 * math.cos(a) + 5 * math.cos(2 * a) + 2 * math.cos(3 * a) + math.cos(4 * a),
        )
        for a in turns
    ]
    return [(x / 17, (y - 2.5) / 17) for x, y in curve]


_SQUARE = [(x / math.sqrt(2), y / math.sqrt(2)) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
_TRIANGLE = [(math.sin(a), -math.cos(a)) for a in (0, 2 * math.pi / 3, 4 * math.pi / 3)]
_DISC = (0.0, 0.0, 0.9)  # x, y, radius


# A shape is an outline, or a disc with another cut out of it.
SHAPES: dict[str, Outline | tuple] = {
    "circle": (_DISC, None),
    "square": _SQUARE,
    "triangle": _TRIANGLE,
    "star": _star(),
    "ring": (_DISC, (0.0, 0.0, 0.52)),
    "cross": _cross(),
    "heart": _heart(),
    "moon": (_DISC, (0.42, -0.12, 0.72)),
}


class ShapesDataset(TrainData):
    """Images of one shape each; the shape is the class. See `TrainData`.

    Image ``index`` is a function of (seed, index): shapes and colours come in turn, so that all are
    equally frequent; place, size, a tilt of up to 15 degrees and the gray of the background are
    random. Position k shows item ``index(k)`` of the shuffled order, half of the time mirrored
    where ``augment`` is set. An epoch has ``num_items`` images, from ``first_index`` on: ranges
    that do not overlap share no picture, as training data and data held out must not.
    """

    has_captions = True

    def __init__(
        self,
        resolution: int = 32,
        seed: int = 1234,
        num_items: int = 20000,
        first_index: int = 0,
        augment: bool = True,
        prefix: str = "",
    ):
        if resolution < 8:
            raise ValueError(f"shapes need a resolution of at least 8 pixels, got {resolution}")
        if num_items < 1:
            raise ValueError(f"shapes need at least one item, got {num_items}")
        self.resolution, self.seed, self.augment = resolution, seed, augment
        self.first_index, self.prefix = first_index, prefix
        self.class_names = list(SHAPES)
        self.sample_shape = (3, resolution, resolution)
        self._order = ShuffledOrder(num_items, seed)

    def index(self, position: int) -> int:
        return self.first_index + self._order.index(position)

    def attributes(self, index: int) -> tuple[str, str]:
        colours = list(COLOURS)
        return self.class_names[self.label(index)], colours[index // len(SHAPES) % len(colours)]

    def label(self, index: int) -> int:
        return index % len(SHAPES)

    def caption(self, index: int) -> str:
        shape, colour = self.attributes(index)
        return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}"

    def render(self, index: int) -> np.ndarray:
        """Image ``index``, not mirrored: uint8 (R, R, 3)."""
        shape, colour = self.attributes(index)
        rng = random.Random(stable_seed(self.seed, "shape", index))

        def between(low: float, high: float) -> float:
            return low + rng.random() * (high - low)

        radius, tilt = between(*_RADII), between(-_MAX_TILT, _MAX_TILT)
        left, top = between(radius, 1 - radius), between(radius, 1 - radius)
        gray = round(between(*_BACKGROUND))
        cosine, sine = radius * math.cos(tilt), radius * math.sin(tilt)

        def place(x: float, y: float) -> tuple[float, float]:
            return left + cosine * x - sine * y, top + sine * x + cosine * y

        cover = _coverage(SHAPES[shape], place, self.resolution)[..., None]  # (R, R, 1)
        paint = np.array(COLOURS[colour], np.uint16)
        return ((cover * paint + (255 - cover) * gray + 127) // 255).astype(np.uint8)

    def read_batch(self, positions: list[int]) -> dict[str, Any]:
        """``pixels`` uint8 (B, R, R, 3), ``label`` int64 (B,) and ``caption``, B strings."""
        indices = [self.index(position) for position in positions]
        pixels = np.stack([self.render(index) for index in indices])
        if self.augment:
            mirror_half(pixels, self.seed, positions)
        labels = torch.tensor([self.label(index) for index in indices])
        captions = [with_prefix(self.prefix, self.caption(index)) for index in indices]
        return {"pixels": torch.from_numpy(pixels), "label": labels, "caption": captions}


def _coverage(shape: Outline | tuple, place: Callable, size: int) -> np.ndarray:
    """How much of each pixel a shape covers, 0 to 255, uint16 (size, size)."""
    fine = size * _SUPERSAMPLING
    mask = Image.new("L", (fine, fine))
    draw = ImageDraw.Draw(mask)
    if isinstance(shape, list):
        draw.polygon([(fine * x, fine * y) for x, y in (place(*corner) for corner in shape)], 255)
    else:
        (x, y), (edge_x, edge_y) = place(0, 0), place(1, 0)
        scale = fine * math.hypot(edge_x - x, edge_y - y)
        for disc, level in zip(shape, (255, 0), strict=True):
            if disc is not None:
                x, y = (fine * value for value in place(*disc[:2]))
                radius = scale * disc[2]
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), level)
    return np.asarray(mask.reduce(_SUPERSAMPLING), np.uint16)
