"""Orthonormal 2D Haar transform, as a butterfly: sums and differences of neighbours.

With the pixels of a 2x2 square ``a b / c d``, the four bands are

    LL = (a + b + c + d) / 2      LH = (a + b - c - d) / 2
    HL = (a - b + c - d) / 2      HH = (a - b - c + d) / 2

It is plain additions, so it is exact on GPUs whose convolutions round to TF32, needs no kernels
in the state dict, and compiles to one pass.

Source: Li et al. 2024 (WF-VAE), arXiv:2411.17459, section 3.1.
"""

import torch
from torch import Tensor, nn


def haar(x: Tensor) -> Tensor:
    """Splits images (B, C, H, W), H and W even, into four half-size bands.

    Gives (B, 4 C, H/2, W/2), band-major (LL, LH, HL, HH), channels_last.
    """
    if x.shape[-2] % 2 or x.shape[-1] % 2:
        raise ValueError(f"Haar needs an even height and width, got {tuple(x.shape[-2:])}")
    top, bottom = x[..., 0::2, :], x[..., 1::2, :]
    low, high = (top + bottom) * 0.5, (top - bottom) * 0.5  # (B, C, H/2, W)
    low_left, low_right = low[..., 0::2], low[..., 1::2]
    high_left, high_right = high[..., 0::2], high[..., 1::2]
    bands = [
        low_left + low_right,
        high_left + high_right,
        low_left - low_right,
        high_left - high_right,
    ]
    return torch.cat(bands, dim=1).contiguous(memory_format=torch.channels_last)


def inverse_haar(coeffs: Tensor) -> Tensor:
    """Inverse of `haar`, which is also its transpose: (B, 4 C, H, W) to (B, C, 2 H, 2 W)."""
    if coeffs.shape[1] % 4:
        raise ValueError(f"four bands expected, got {coeffs.shape[1]} channels")
    ll, lh, hl, hh = (coeffs * 0.5).permute(0, 2, 3, 1).chunk(4, dim=3)  # (B, H, W, C) each
    low_left, low_right = ll + hl, ll - hl
    high_left, high_right = lh + hh, lh - hh
    top = torch.stack([low_left + high_left, low_right + high_right], dim=3).flatten(2, 3)
    bottom = torch.stack([low_left - high_left, low_right - high_right], dim=3).flatten(2, 3)
    x = torch.stack([top, bottom], dim=2).flatten(1, 2)  # (B, 2 H, 2 W, C)
    return x.permute(0, 3, 1, 2)


class HaarWaveletTransform2D(nn.Module):
    """`haar` as a module, without state."""

    def forward(self, x: Tensor) -> Tensor:
        return haar(x)


class InverseHaarWaveletTransform2D(nn.Module):
    """`inverse_haar` as a module, without state."""

    def forward(self, coeffs: Tensor) -> Tensor:
        return inverse_haar(coeffs)
