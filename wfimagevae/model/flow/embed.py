"""Places of tokens in a square or a line, and the mean of those inside a mask."""

import torch
from torch import Tensor

MAX_PERIOD = 10_000.0


def position_table(width: int, side: int) -> Tensor:
    """Fixed embedding of the places in a square, row by row: float32 (side^2, width).

    The first half codes the column, the second the row, each by sines, then cosines.

    Source: He et al. 2022 (MAE), arXiv:2111.06377; as in DiT's checkpoints.
    """
    if width % 4:
        raise ValueError(f"position 'absolute' needs a width that is a multiple of 4, got {width}")
    angles = _angles(torch.arange(side), width // 4)  # (side, width / 4)
    coded = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns, rows = coded.repeat(side, 1), coded.repeat_interleave(side, 0)
    return torch.cat([columns, rows], dim=1).float()


def rotation_table(head_width: int, height: int, width: int) -> Tensor:
    """Cosines and sines of the angles by which `rotate` turns queries and keys.

    Half of the pairs turn with the row, half with the column. Gives float32
    (2, height * width, head_width / 2).

    Source: Su et al. 2021 (RoPE), arXiv:2104.09864, along two axes.
    """
    if head_width % 4:
        raise ValueError(f"position 'rope' needs heads of a multiple of 4, got {head_width}")
    rows = _angles(torch.arange(height), head_width // 4).repeat_interleave(width, 0)
    columns = _angles(torch.arange(width), head_width // 4).repeat(height, 1)
    angles = torch.cat([rows, columns], dim=1)
    return torch.stack([angles.cos(), angles.sin()]).float()


def line_rotation_table(head_width: int, length: int) -> Tensor:
    """As `rotation_table`, for places in a line: float32, (2, length, head_width / 2)."""
    angles = _angles(torch.arange(length), head_width // 2)
    return torch.stack([angles.cos(), angles.sin()]).float()


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turns each pair (i, i + d / 2) of the values of x (B, heads, N, d) by its place's angle."""
    cos, sin = rotation
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def _angles(places: Tensor, count: int) -> Tensor:
    exponents = torch.arange(count, dtype=torch.float64) / count
    return places.double()[:, None] * MAX_PERIOD**-exponents


def masked_mean(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (B, L, D) with zeros outside the mask, bool (B, L), and the mean (B, D) inside."""
    tokens = tokens.masked_fill(~mask[..., None], 0)
    return tokens, tokens.sum(1) / mask.sum(1, keepdim=True).clamp_min(1)  # zero without a text
