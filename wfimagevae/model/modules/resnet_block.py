"""Residual block of two 3x3 convolutions."""

import torch.nn.functional as F
from torch import Tensor, nn

from wfimagevae.model.modules.normalize import build_norm, norm_swish_conv


class ResnetBlock2D(nn.Module):
    """norm, swish, 3x3, norm, swish, dropout, 3x3, plus the input.

    Args:
        in_channels: Width of the input.
        out_channels: Width of the output; where it differs, a 1x1 convolution takes the input
            there.
        dropout: Probability of dropping a value before the second convolution.
        norm_type: ``layernorm`` or ``groupnorm``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dropout: float = 0.0,
        norm_type: str = "layernorm",
    ):
        super().__init__()
        self.norm1 = build_norm(norm_type, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = build_norm(norm_type, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels == out_channels:
            self.nin_shortcut = nn.Identity()
        else:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = norm_swish_conv(self.norm1, self.conv1, x)
        if self.training and self.dropout.p > 0:
            h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        else:
            h = norm_swish_conv(self.norm2, self.conv2, h)
        return h.add_(self.nin_shortcut(x))
