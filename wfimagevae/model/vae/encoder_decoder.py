"""The two halves of the wavelet-flow autoencoder, and their levels.

A level has features beside the Haar bands of the same size.

Source: Li et al. 2024 (WF-VAE), arXiv:2411.17459, sections 3.2 and 3.3, with images for videos.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from wfimagevae.model.modeling_base import CheckpointedBlocks
from wfimagevae.model.modules.blocks import (
    AttnBlock2D,
    Downsample,
    ResnetBlock2D,
    Spade,
    Upsample,
)
from wfimagevae.model.modules.normalize import build_activation, build_norm
from wfimagevae.model.modules.wavelet import HaarWaveletTransform2D, InverseHaarWaveletTransform2D

NUM_BANDS = 12  # LL, LH, HL, HH of three colours


def packed(x: Tensor) -> Tensor:
    """``x`` with dense channels_last strides; itself if it has them."""
    return x.contiguous(memory_format=torch.channels_last)


class WFDownBlockImage(nn.Module):
    """Halves a feature map and joins the next level's Haar bands, ``energy_flow_size`` wide, to it.

    ``num_resblocks`` counts the one after the join too.
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

    Bands add up over the levels to the image, so under autocast they leave in the parameters' type.
    ``num_resblocks`` counts those before the branch and at the end too.
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


class EncoderImage(CheckpointedBlocks):
    """Image (B, 3, H, W) to moments (B, 2 C, H/8, W/8) and Haar coefficients, finest first."""

    def __init__(
        self,
        latent_dim: int,
        base_channels: Sequence[int],
        num_resblocks: int,
        energy_flow_size: int,
        dropout: float,
        norm_type: str,
        mid_layers_type: Sequence[str],
        activation: str = "silu",
    ):
        super().__init__()
        options = (dropout, norm_type, activation)
        self.wavelet_transform_in = HaarWaveletTransform2D()
        self.conv_in = nn.Conv2d(NUM_BANDS, base_channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            WFDownBlockImage(*widths, energy_flow_size, num_resblocks, *options)
            for widths in pairwise(base_channels)
        )
        self.mid = _build_mid(mid_layers_type, base_channels[-1], *options)
        self.norm_out = build_norm(norm_type, base_channels[-1])
        self.activation_out = build_activation(activation, base_channels[-1])
        self.conv_out = nn.Conv2d(base_channels[-1], 2 * latent_dim, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        # The network sees bands alone, never pixels.
        coeffs = self.wavelet_transform_in(x)  # (B, 12, H/2, W/2)
        h = self.conv_in(coeffs)
        levels = []
        for block in self.down_blocks:
            h, coeffs = self.run(block, h, coeffs)
            levels.append(coeffs)
        for layer in self.mid:
            h = self.run(layer, h)
        return self.conv_out(self.activation_out(self.norm_out(h))), levels


class DecoderImage(CheckpointedBlocks):
    """Latent (B, C, H/8, W/8) to image (B, 3, H, W) and coefficients, coarsest first."""

    def __init__(  # noqa: PLR0913 - the model's own list
        self,
        latent_dim: int,
        base_channels: Sequence[int],
        num_resblocks: int,
        energy_flow_size: int,
        dropout: float,
        norm_type: str,
        mid_layers_type: Sequence[str],
        activation: str = "silu",
        spade: bool = False,
    ):
        super().__init__()
        options = (dropout, norm_type, activation, latent_dim if spade else 0)
        widths = base_channels[::-1]
        self.conv_in = nn.Conv2d(latent_dim, widths[0], 3, padding=1)
        self.mid = _build_mid(mid_layers_type, widths[0], *options)
        self.up_blocks = nn.ModuleList(
            WFUpBlockImage(*pair, energy_flow_size, num_resblocks, *options)
            for pair in pairwise(widths)
        )
        self.norm_out = build_norm(norm_type, widths[-1])
        self.spade_out = Spade(latent_dim, widths[-1]) if spade else None
        self.conv_out = nn.Conv2d(widths[-1], NUM_BANDS, 3, padding=1)
        self.inverse_wavelet_transform_out = InverseHaarWaveletTransform2D()

    def forward(self, z: Tensor) -> tuple[Tensor, list[Tensor]]:
        latent = None if self.spade_out is None else z
        h = self.conv_in(z)
        for layer in self.mid:
            h = self.run(layer, h, latent)
        # Each level hands its completed image on as the low band of the next.
        low, levels = None, []
        for block in self.up_blocks:
            h, low, coeffs = self.run(block, h, low, latent)
            levels.append(coeffs)
        # The last bands complete those that the levels added up, and become the image.
        h = self.norm_out(h)
        h = h if latent is None else self.spade_out(h, latent)
        # No activation here: checkpoints were trained without.
        coeffs = self.conv_out(h).to(self.conv_out.weight.dtype)  # (B, 12, H/2, W/2)
        coeffs[:, :3] += low
        return self.inverse_wavelet_transform_out(coeffs), levels


def _build_mid(
    layer_types: Sequence[str],
    channels: int,
    dropout: float,
    norm_type: str,
    activation: str,
    latent_dim: int = 0,
) -> nn.Sequential:
    options = (dropout, norm_type, activation, latent_dim)
    builders = {
        "ResnetBlock2D": lambda: ResnetBlock2D(channels, channels, *options),
        "AttnBlock2D": lambda: AttnBlock2D(channels, norm_type, latent_dim),
    }
    for name in layer_types:
        if name not in builders:
            raise ValueError(f"unknown layer {name!r}; use one of {', '.join(builders)}")
    return nn.Sequential(*(builders[name]() for name in layer_types))
