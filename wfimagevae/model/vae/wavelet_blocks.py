"""Levels of the wavelet-flow autoencoder: features beside the Haar bands of the same size.

Source: Li et al. 2024 (WF-VAE), arXiv:2411.17459, section 3.2.
"""

import torch
from torch import Tensor, nn

from wfimagevae.model.modules.resnet_block import ResnetBlock2D
from wfimagevae.model.modules.updownsample import Downsample, Upsample
from wfimagevae.model.modules.wavelet import (
    HaarWaveletTransform2D,
    InverseHaarWaveletTransform2D,
)

NUM_BANDS = 12  # LL, LH, HL, HH of three colours


def packed(x: Tensor) -> Tensor:
    """``x`` with dense channels_last strides; itself if it has them."""
    return x.contiguous(memory_format=torch.channels_last)


class WFDownBlockImage(nn.Module):
    """Halves a feature map and joins the Haar bands of the next level to it.

    Args:
        in_channels: Width of the input.
        out_channels: Width of the output.
        energy_flow_size: Width that the bands are taken to.
        num_resblocks: Residual blocks, the one after the join counted.
        dropout: Of the residual blocks, as are norm_type and activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        energy_flow_size: int,
        num_resblocks: int,
        dropout: float,
        norm_type: str,
        activation: str = "silu",
    ):
        super().__init__()
        options = (dropout, norm_type, activation)
        self.res_block = nn.Sequential(
            *(ResnetBlock2D(in_channels, in_channels, *options) for _ in range(num_resblocks - 1))
        )
        self.down = Downsample(in_channels)
        self.wavelet_transform = HaarWaveletTransform2D()
        self.in_flow_conv = nn.Conv2d(NUM_BANDS, energy_flow_size, 3, padding=1)
        self.out_res_block = ResnetBlock2D(in_channels + energy_flow_size, out_channels, *options)

    def forward(self, x: Tensor, coeffs: Tensor) -> tuple[Tensor, Tensor]:
        x = self.down(self.res_block(x))  # (B, C_in, H/2, W/2)
        coeffs = self.wavelet_transform(coeffs[:, :3])  # (B, 12, H/2, W/2)
        x = torch.cat([x, self.in_flow_conv(coeffs)], dim=1)  # (B, C_in + E, H/2, W/2)
        return self.out_res_block(x), coeffs


class WFUpBlockImage(nn.Module):
    """Doubles a feature map and branches off the Haar bands of its level.

    Bands add up over the levels to the image, so under autocast they leave in the parameters'
    type. ``num_resblocks`` counts those before the branch and at the end, ``latent_dim`` the
    channels of the latent that modulates the norms; the rest is as for `WFDownBlockImage`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        energy_flow_size: int,
        num_resblocks: int,
        dropout: float,
        norm_type: str,
        activation: str = "silu",
        latent_dim: int = 0,
    ):
        super().__init__()
        options = (dropout, norm_type, activation, latent_dim)
        self.widths = [in_channels, energy_flow_size]
        self.branch_conv = ResnetBlock2D(in_channels, sum(self.widths), *options)
        self.out_flow_conv = nn.Sequential(
            ResnetBlock2D(energy_flow_size, energy_flow_size, *options),
            nn.Conv2d(energy_flow_size, NUM_BANDS, 3, padding=1),
        )
        self.inverse_wavelet_transform = InverseHaarWaveletTransform2D()
        self.res_block = nn.Sequential(
            *(ResnetBlock2D(in_channels, in_channels, *options) for _ in range(num_resblocks - 2))
        )
        self.up = Upsample(in_channels)
        self.out_res_block = ResnetBlock2D(in_channels, out_channels, *options)

    def forward(
        self, x: Tensor, low: Tensor | None = None, latent: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Split the bands off, and complete them with those of the coarser level.
        x = self.branch_conv(x, latent)
        x, flow = x.split(self.widths, dim=1)  # (B, C, H, W), (B, E, H, W)
        flow_block, flow_conv = self.out_flow_conv
        flow = flow_conv(flow_block(packed(flow), latent))  # (B, 12, H, W)
        coeffs = flow.to(self.up.conv.weight.dtype)
        if low is not None:
            coeffs[:, :3] += low
        low = self.inverse_wavelet_transform(coeffs)  # (B, 3, 2 H, 2 W)
        # Go on with the rest, at twice the size.
        x = packed(x)
        for block in self.res_block:
            x = block(x, latent)
        return self.out_res_block(self.up(x), latent), low, coeffs  # (B, C_out, 2 H, 2 W)
