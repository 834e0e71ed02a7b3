"""Normalised features modulated by the latent, pixel by pixel."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN_CHANNELS = 64


class Spade(nn.Module):
    """Scales and shifts a norm's result by what two convolutions read off the latent.

    The last of them starts at zero, so a fresh one changes nothing.

    Source: Park et al. 2019, arXiv:1903.07291, with the latent in place of a segmentation map.
    """

    def __init__(self, latent_dim: int, channels: int):
        super().__init__()
        self.conv_in = nn.Conv2d(latent_dim, HIDDEN_CHANNELS, 3, padding=1)
        self.conv_out = nn.Conv2d(HIDDEN_CHANNELS, 2 * channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        """``x * (1 + scale) + shift`` of x (B, C, H, W), to whose size the latent is brought."""
        if latent.shape[2:] != x.shape[2:]:
            latent = F.interpolate(latent, size=x.shape[2:], mode="bilinear")
            latent = latent.contiguous(memory_format=torch.channels_last)
        hidden = F.relu(self.conv_in(latent), inplace=True)
        scale, shift = self.conv_out(hidden).chunk(2, dim=1)
        return torch.addcmul(shift.to(x.dtype), x, 1 + scale.to(x.dtype))
