"""Images of any size: padding to whole latent pixels; tiles for those larger than memory."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiling:
    """Tiles of latents, in latent pixels: their side, and the least overlap of neighbours."""

    size: int
    overlap: int

    @classmethod
    def from_pixels(cls, tile_size: int, overlap: int | None, factor: int) -> "Tiling":
        """Tiling of images whose latents are ``factor`` times smaller; sizes in pixels.

        An overlap of None is 128 pixels, or half of a smaller tile. ValueError for what is no
        multiple of the factor, and for an overlap of more than half of the tile.
        """
        if overlap is None:
            overlap = min(128, tile_size // 2 // factor * factor)
        if tile_size % factor or overlap % factor or not 0 < overlap <= tile_size // 2:
            raise ValueError(
                f"tile_size must be a multiple of {factor} and at least {2 * factor}, got "
                f"{tile_size}, and the overlap one of at most half of it, got {overlap}"
            )
        return cls(tile_size // factor, overlap // factor)

    def run(self, function: Callable[[Tensor], Tensor], x: Tensor, factors: tuple) -> Tensor:
        """Applies ``function`` to each tile of ``x``, (B, C, H, W), and blends the results.

        ``factors`` are the pixels per latent pixel of input and output: (8, 1) encodes, (1, 8)
        decodes.
        """
        before, after = factors
        height, width = x.shape[2] // before, x.shape[3] // before
        rows, columns = self._starts(height), self._starts(width)
        row_weights = self._weights(rows, height, after).to(x.device)
        column_weights = self._weights(columns, width, after).to(x.device)
        # Each tile is added with its weight; at each pixel the tiles' weights sum to one.
        result = None
        for (i, top), (j, left) in itertools.product(enumerate(rows), enumerate(columns)):
            tile = function(x[(..., *self._window(top, left, before))])
            if result is None:
                shape = (*tile.shape[:2], height * after, width * after)
                result = tile.new_zeros(shape).contiguous(memory_format=torch.channels_last)
            window = self._window(top, left, after)
            weight = row_weights[i, window[0], None] * column_weights[j, window[1]]
            result[(..., *window)] += tile * weight.to(tile.dtype)
        return result

    def _window(self, top: int, left: int, scale: int) -> tuple[slice, slice]:
        """The tile's rows and columns; slicing cuts it where the image is smaller."""
        rows, columns = (slice(n * scale, (n + self.size) * scale) for n in (top, left))
        return rows, columns

    def _starts(self, length: int) -> list[int]:
        """First positions of the fewest tiles that cover ``length``, evenly spread."""
        if length <= self.size:
            return [0]
        last = length - self.size
        count = 1 + math.ceil(last / (self.size - self.overlap))
        return [round(i * last / (count - 1)) for i in range(count)]

    def _weights(self, starts: list[int], length: int, scale: int) -> Tensor:
        """Each tile's weight along one axis, (tiles, length * scale); columns sum to one.

        A tile counts nothing in the quarter of the overlap next to its seam, where it lacks
        context, and its weight grows linearly over the half after that.
        """
        position = (torch.arange(length * scale) + 0.5) / scale  # in latent pixels
        start = torch.tensor(starts)[:, None]
        end = start + self.size
        # Distance to the nearest seam; edges of the image are none.
        before = torch.where(start > 0, position - start, torch.inf)
        after = torch.where(end < length, end - position, torch.inf)
        depth = torch.minimum(before, after)  # (tiles, length * scale)
        weights = ((depth - self.overlap / 4) / (self.overlap / 2)).clamp(0.0, 1.0)
        return weights / weights.sum(0)


def pad_to_multiple(x: Tensor, multiple: int = 8) -> tuple[Tensor, tuple[int, int]]:
    """Reflects images (B, C, H, W) at the bottom and right until their sides are multiples.

    Gives the padded images, and (H, W) to crop results back to.
    """
    height, width = x.shape[-2:]
    rows, columns = (
        torch.from_numpy(np.pad(np.arange(side), (0, -side % multiple), "reflect")).to(x.device)
        for side in (height, width)
    )
    return x[..., rows, :][..., columns], (height, width)
