"""Wavelet-flow autoencoder for images: Haar bands run beside the network, into and out of it.

Each level of its halves has features beside the Haar bands of the same size.

Source: Li et al. 2024 (WF-VAE), arXiv:2411.17459, sections 3.2 and 3.3, with images for videos.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from wfimagevae.model.modeling_aebase import (
    DecoderOutput,
    DiagonalGaussian,
    EncoderOutput,
    ImageBaseAE,
)
from wfimagevae.model.modeling_base import CheckpointedBlocks, compile_each
from wfimagevae.model.modules.blocks import (
    NORMS,
    AttnBlock2D,
    Downsample,
    ResnetBlock2D,
    Spade,
    Upsample,
    build_activation,
    is_hooked,
    widened,
)
from wfimagevae.model.modules.wavelet import haar, inverse_haar
from wfimagevae.model.registry import ModelRegistry, Share, Size

NUM_BANDS = 12  # LL, LH, HL, HH of three colours


class WFDownBlockImage(nn.Module):
    """Halves a feature map and joins the next level's Haar bands, ``energy_flow_size`` wide, to it.

    ``num_resblocks`` counts the one after the join too; ``options`` are those of `ResnetBlock2D`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        energy_flow_size: int,
        num_resblocks: int,
        **options,
    ):
        super().__init__()
        self.res_block = nn.Sequential(
            *[ResnetBlock2D(in_channels, in_channels, **options) for _ in range(num_resblocks - 1)]
        )
        self.down = Downsample(in_channels)
        self.in_flow_conv = nn.Conv2d(NUM_BANDS, energy_flow_size, 3, padding=1)
        self.out_res_block = ResnetBlock2D(in_channels + energy_flow_size, out_channels, **options)

    def forward(self, x: Tensor, coeffs: Tensor) -> tuple[Tensor, Tensor]:
        x = self.down(self.res_block(x))  # (B, C_in, H/2, W/2)
        coeffs = haar(coeffs[:, :3])  # (B, 12, H/2, W/2)
        x = torch.cat([x, self.in_flow_conv(coeffs)], dim=1)  # (B, C_in + E, H/2, W/2)
        return self.out_res_block(x), coeffs


class WFUpBlockImage(nn.Module):
    """Doubles a feature map and branches off the Haar bands of its level.

    Bands add up over the levels to the image, so under autocast they leave in the parameters' type.
    ``num_resblocks`` counts those before the branch and at the end too; ``options`` are those of
    `ResnetBlock2D`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        energy_flow_size: int,
        num_resblocks: int,
        **options,
    ):
        super().__init__()
        self.widths = [in_channels, energy_flow_size]
        self.branch_conv = ResnetBlock2D(in_channels, sum(self.widths), **options)
        self.out_flow_conv = nn.Sequential(
            ResnetBlock2D(energy_flow_size, energy_flow_size, **options),
            nn.Conv2d(energy_flow_size, NUM_BANDS, 3, padding=1),
        )
        self.res_block = nn.Sequential(
            *[ResnetBlock2D(in_channels, in_channels, **options) for _ in range(num_resblocks - 2)]
        )
        self.up = Upsample(in_channels)
        self.out_res_block = ResnetBlock2D(in_channels, out_channels, **options)

    def forward(
        self, x: Tensor, low: Tensor | None = None, latent: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Split the bands off, and complete them with those of the coarser level.
        x, flow = self.branch_conv(x, latent).split(self.widths, dim=1)
        x = x.contiguous(memory_format=torch.channels_last)
        flow = flow.contiguous(memory_format=torch.channels_last)
        flow_block, flow_conv = self.out_flow_conv
        flow = flow_conv(flow_block(flow, latent))  # (B, E, H, W) to (B, 12, H, W)
        coeffs = widened(flow, self.up.conv.weight)
        if low is not None:
            coeffs[:, :3] += low
        low = inverse_haar(coeffs)  # (B, 3, 2 H, 2 W)
        # Go on with the rest, at twice the size.
        for block in self.res_block:
            x = block(x, latent)
        return self.out_res_block(self.up(x), latent), low, coeffs  # (B, C_out, 2 H, 2 W)


class EncoderImage(CheckpointedBlocks):
    """Image (B, 3, H, W) to moments (B, 2 C, H/8, W/8) and Haar coefficients, finest first.

    ``options`` are those of `ResnetBlock2D`.
    """

    def __init__(
        self,
        latent_dim: int,
        base_channels: Sequence[int],
        num_resblocks: int,
        energy_flow_size: int,
        mid_layers_type: Sequence[str],
        norm_type: str,
        activation: str = "silu",
        **options,
    ):
        super().__init__()
        options |= {"norm_type": norm_type, "activation": activation}
        self.conv_in = nn.Conv2d(NUM_BANDS, base_channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for widths in pairwise(base_channels):
            block = WFDownBlockImage(*widths, energy_flow_size, num_resblocks, **options)
            self.down_blocks.append(block)
        self.mid = _build_mid(mid_layers_type, base_channels[-1], **options)
        self.norm_out = NORMS[norm_type](base_channels[-1])
        self.activation_out = build_activation(activation, base_channels[-1])
        self.conv_out = nn.Conv2d(base_channels[-1], 2 * latent_dim, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        # The network sees bands alone, never pixels.
        coeffs = haar(x)  # (B, 12, H/2, W/2)
        h, run = self.conv_in(coeffs), self.run
        levels = []
        for block in self.down_blocks:
            h, coeffs = run(block, h, coeffs)
            levels.append(coeffs)
        for layer in self.mid:
            h = run(layer, h)
        return self.conv_out(self.activation_out(self.norm_out(h))), levels


class DecoderImage(CheckpointedBlocks):
    """Latent (B, C, H/8, W/8) to image (B, 3, H, W) and coefficients, coarsest first."""

    def __init__(
        self,
        latent_dim: int,
        base_channels: Sequence[int],
        num_resblocks: int,
        energy_flow_size: int,
        mid_layers_type: Sequence[str],
        norm_type: str,
        spade: bool = False,
        **options,
    ):
        super().__init__()
        options |= {"norm_type": norm_type, "latent_dim": latent_dim if spade else 0}
        widths = base_channels[::-1]
        self.conv_in = nn.Conv2d(latent_dim, widths[0], 3, padding=1)
        self.mid = _build_mid(mid_layers_type, widths[0], **options)
        self.up_blocks = nn.ModuleList()
        for pair in pairwise(widths):
            block = WFUpBlockImage(*pair, energy_flow_size, num_resblocks, **options)
            self.up_blocks.append(block)
        self.norm_out = NORMS[norm_type](widths[-1])
        self.spade_out = Spade(latent_dim, widths[-1]) if spade else None
        self.conv_out = nn.Conv2d(widths[-1], NUM_BANDS, 3, padding=1)

    def forward(self, z: Tensor) -> tuple[Tensor, list[Tensor]]:
        latent = None if self.spade_out is None else z
        h, run = self.conv_in(z), self.run
        for layer in self.mid:
            h = run(layer, h, latent)
        # Each level hands its completed image on as the low band of the next.
        low, levels = None, []
        for block in self.up_blocks:
            h, low, coeffs = run(block, h, low, latent)
            levels.append(coeffs)
        # The last bands complete those that the levels added up, and become the image.
        h = self.norm_out(h)
        h = h if latent is None else self.spade_out(h, latent)
        # No activation here: checkpoints were trained without.
        coeffs = widened(self.conv_out(h), self.conv_out.weight)  # (B, 12, H/2, W/2)
        coeffs[:, :3] += low
        return inverse_haar(coeffs), levels


def _build_mid(
    layer_types: Sequence[str], channels: int, norm_type: str, latent_dim: int = 0, **options
) -> nn.Sequential:
    options |= {"norm_type": norm_type, "latent_dim": latent_dim}
    mid = nn.Sequential()
    for name in layer_types:
        if name == "AttnBlock2D":
            mid.append(AttnBlock2D(channels, norm_type, latent_dim))
        else:
            mid.append(ResnetBlock2D(channels, channels, **options))
    return mid


@ModelRegistry.register("WFVAE2Image")
class WFVAE2ImageModel(ImageBaseAE):
    """Variational autoencoder with 8x downsampling; the arguments are the keys of config.json.

    ``base_channels`` are widths, finest level first (``decoder_base_channels`` None: the same), an
    ``energy_flow_size`` is the width of the Haar bands beside a half, ``dropout`` acts inside the
    residual blocks. ``norm_type`` is ``layernorm`` or ``groupnorm``, ``mid_layers_type``, at the
    coarsest level, ResnetBlock2D or AttnBlock2D. ``scale`` (1 / standard deviation) and ``shift``
    (mean) are per latent channel; None is 0.18215 and 0 for all.

    Args:
        activation: ``silu``, ``relu`` or ``bezier``. Bezier has a 1x1 projection to five values a
            channel wherever SiLU stands: 1.5 times the parameters at these widths, and as many
            (0.99) at those of examples/wfvae2-image-1024-bezier.json.
        spade: Modulate the decoder's norms by the latent, bilinearly resized to each level. A fresh
            modulation changes nothing; weights without one get it from `from_pretrained`.
    """

    @register_to_config
    def __init__(  # noqa: PLR0913 - diffusers reads the config's keys off this signature
        self,
        latent_dim: Size = 8,
        base_channels: Sequence[Size] = (128, 256, 512),
        decoder_base_channels: Sequence[Size] | None = None,
        encoder_num_resblocks: Annotated[int, 1, 1000] = 2,
        encoder_energy_flow_size: Size = 128,
        decoder_num_resblocks: Annotated[int, 2, 1000] = 2,
        decoder_energy_flow_size: Size = 128,
        dropout: Share = 0.0,
        norm_type: Literal["layernorm", "groupnorm"] = "layernorm",
        layer_res_type: Sequence[Literal["ResnetBlock2D"]] = ("ResnetBlock2D", "ResnetBlock2D"),
        mid_layers_type: Sequence[Literal["ResnetBlock2D", "AttnBlock2D"]] = (
            "ResnetBlock2D",
            "AttnBlock2D",
            "ResnetBlock2D",
        ),
        scale: Sequence[float] | None = None,
        shift: Sequence[float] | None = None,
        activation: Literal["silu", "relu", "bezier"] = "silu",
        spade: bool = False,
    ):
        super().__init__()
        decoder_base_channels = decoder_base_channels or base_channels
        num_levels = len(base_channels)
        if not num_levels == len(decoder_base_channels) == len(layer_res_type) + 1 >= 2:
            raise ValueError(
                "base_channels and decoder_base_channels need the same number of levels, at least "
                "2, and layer_res_type one entry less, got "
                f"{list(base_channels)}, {list(decoder_base_channels)} and {list(layer_res_type)}"
            )
        # Two halves of the same parts; the decoder may be wider, or modulated.
        common = {"mid_layers_type": mid_layers_type, "dropout": dropout}
        common |= {"norm_type": norm_type, "activation": activation}
        encoder = base_channels, encoder_num_resblocks, encoder_energy_flow_size
        decoder = decoder_base_channels, decoder_num_resblocks, decoder_energy_flow_size
        self.encoder = EncoderImage(latent_dim, *encoder, **common)
        self.decoder = DecoderImage(latent_dim, *decoder, spade=spade, **common)
        # The first level is that of the image's own bands.
        self.block_out_channels = (NUM_BANDS, *base_channels)
        self.register_to_config(decoder_base_channels=decoder_base_channels)
        self.set_latent_statistics(shift, scale)
        self.spatial_factor = 2**num_levels
        self.use_tiling = self.use_slicing = False  # diffusers' names
        self.to(memory_format=torch.channels_last)

    @property
    def last_layer(self) -> Tensor:
        return self.decoder.conv_out.weight

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> EncoderOutput | tuple:
        """Posterior of images in [-1, 1], (B, 3, H, W), sides multiples of `spatial_factor`."""
        factor = self.spatial_factor
        if x.dim() != 4 or x.shape[1] != 3:
            raise ValueError(f"images must be (B, 3, H, W), got {tuple(x.shape)}")
        if 0 in x.shape or x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(
                f"height and width must be multiples of {factor}, got {tuple(x.shape[2:])}; "
                "pad with pad_to_multiple and crop the result"
            )
        moments, levels = self._run(self.encoder, self._taken(x), (factor, 1))
        output = EncoderOutput(DiagonalGaussian(moments), levels)
        return output if return_dict else (output.latent_dist,)

    @apply_forward_hook
    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple:
        """Images, not clamped, of latents (B, C, h, w) as `encode` gives them (not normalized).

        Nothing is drawn: diffusers' pipelines hand a generator to all autoencoders.
        """
        channels = self.decoder.conv_in.in_channels
        if z.dim() != 4 or z.shape[1] != channels:
            raise ValueError(f"latents must be (B, {channels}, h, w), got {tuple(z.shape)}")
        output = DecoderOutput(*self._run(self.decoder, self._taken(z), (1, self.spatial_factor)))
        return output if return_dict else (output.sample,)

    def _taken(self, x: Tensor) -> Tensor:
        """An input in the model's type, which `ModelMixin.dtype` takes milliseconds to find."""
        conv = self.decoder.conv_out
        dtype = self.dtype if is_hooked(conv) else conv.weight.dtype
        return x.to(dtype).contiguous(memory_format=torch.channels_last)

    def _optional_parts(self, embedded: dict, overrides: dict) -> list:
        message = "no SPADE modulation in the weights; a fresh one changes nothing"
        return [] if embedded.get("spade") else [(lambda key: ".spade" in key, message)]

    def compile_blocks(self, mode: str | None = None) -> None:
        """Compiles block by block, in place; names in the state dict stay as they are.

        The last norms are compiled without the convolutions behind them, so that the last layer's
        gradient, which the adaptive adversarial weight needs, runs no other layer's backward pass.
        """
        encoder, decoder = self.encoder, self.decoder
        blocks = (*encoder.down_blocks, *encoder.mid, *decoder.mid, *decoder.up_blocks)
        compile_each((*blocks, encoder.norm_out, decoder.norm_out), mode)
