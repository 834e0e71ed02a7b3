"""Haar transforms of clips, (B, C, T, H, W), as sums and differences of neighbours.

The constant of the 3-D transform is 0.3536, as checkpoints were trained with, not 1 / sqrt(8):
there and back multiplies by 8 x 0.3536^2 = 1.000264.

Source: Li et al. 2024 (WF-VAE), arXiv:2411.17459, section 3.1.
"""

import torch
from torch import Tensor

T, H, W = 2, 3, 4
# In the order in which axes are split: the sign along the last one changes slowest.
AXES_2D, AXES_3D = (H, W), (W, H, T)
FACTORS = {AXES_2D: 0.5, AXES_3D: 0.3536}


def haar(x: Tensor, axes: tuple[int, ...], is_first: bool = True) -> Tensor:
    """Bands of a clip, or of a chunk of it, band-major, half as large; an odd end is dropped.

    In 2-D, LL, LH, HL, HH of each frame: (B, 4 C, T, H/2, W/2). In 3-D, 1 + 2k frames become 1 + k
    of 8 C channels, as frame 0 counts twice: band 4 t + 2 h + w changes sign along the axes whose
    bits are 1, earlier minus later in time.
    """
    if T in axes and is_first:
        x = torch.cat([x[:, :, :1], x], dim=T)
    for axis in axes:
        pairs = x.narrow(axis, 0, x.shape[axis] // 2 * 2).unflatten(axis, (-1, 2))
        first, second = pairs.unbind(axis + 1)
        x = torch.cat([first + second, first - second], dim=1)
    return x * FACTORS[axes]


def inverse_haar(coeffs: Tensor, axes: tuple[int, ...], is_first: bool = True) -> Tensor:
    """The transpose of `haar`, (B, C, ...), twice as large; in 3-D without the copy of frame 0."""
    x = coeffs * FACTORS[axes]
    for axis in reversed(axes):
        low, high = x.chunk(2, dim=1)
        x = torch.stack([low + high, low - high], dim=axis + 1).flatten(axis, axis + 1)
    return x[:, :, 1:] if T in axes and is_first else x
