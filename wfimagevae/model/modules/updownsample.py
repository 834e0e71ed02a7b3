"""Halving and doubling of feature maps by convolutions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Downsample(nn.Module):
    """Convolution, 3x3, of stride 2; one row and one column of zeros at the bottom and right."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Each pixel repeated 2x2, then a 3x3 convolution.

    Both are one transposed convolution of stride 2, whose 4x4 kernel is the 3x3 kernel spread
    by a 2x2 box: the same values with 16 instead of 36 products per input pixel, and the
    repeated image is never in memory.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        kernel = _spread(self.conv.weight.flip(-2, -1).transpose(0, 1))
        kernel = kernel.contiguous(memory_format=torch.channels_last)
        return F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)


def _spread(kernel: Tensor) -> Tensor:
    """Convolves (I, O, 3, 3) kernels with a 2x2 box of ones, to (I, O, 4, 4)."""
    wide = F.pad(kernel, (0, 1)) + F.pad(kernel, (1, 0))
    return F.pad(wide, (0, 0, 0, 1)) + F.pad(wide, (0, 0, 1, 0))
