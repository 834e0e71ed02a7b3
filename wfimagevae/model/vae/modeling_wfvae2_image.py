"""Wavelet-flow autoencoder for images: Haar bands run beside the network, into and out of it.

Source: Li et al. 2024 (WF-VAE), arXiv:2411.17459, sections 3.2 and 3.3, with images for videos.
"""

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from wfimagevae.model.modeling_aebase import DecoderOutput, EncoderOutput, ImageBaseAE
from wfimagevae.model.modules.posterior import DiagonalGaussian
from wfimagevae.model.registry import ModelRegistry
from wfimagevae.model.vae.encoder_decoder import (
    DecoderImage,
    EncoderImage,
    WFDownBlockImage,
    WFUpBlockImage,
    packed,
)
from wfimagevae.model.vae.tiling import Tiling, pad_to_multiple

__all__ = [
    "DecoderImage",
    "EncoderImage",
    "WFDownBlockImage",
    "WFUpBlockImage",
    "WFVAE2ImageModel",
    "pad_to_multiple",
]


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
        latent_dim: int = 8,
        base_channels: Sequence[int] = (128, 256, 512),
        decoder_base_channels: Sequence[int] | None = None,
        encoder_num_resblocks: int = 2,
        encoder_energy_flow_size: int = 128,
        decoder_num_resblocks: int = 2,
        decoder_energy_flow_size: int = 128,
        dropout: float = 0.0,
        norm_type: str = "layernorm",
        layer_res_type: Sequence[str] = ("ResnetBlock2D", "ResnetBlock2D"),
        mid_layers_type: Sequence[str] = ("ResnetBlock2D", "AttnBlock2D", "ResnetBlock2D"),
        scale: Sequence[float] | None = None,
        shift: Sequence[float] | None = None,
        activation: str = "silu",
        spade: bool = False,
    ):
        super().__init__()
        decoder_base_channels = decoder_base_channels or base_channels
        num_levels = len(base_channels)
        if not num_levels == len(decoder_base_channels) >= 2:
            raise ValueError(
                "base_channels and decoder_base_channels need the same number of levels, at least "
                f"2, got {list(base_channels)} and {list(decoder_base_channels)}"
            )
        if len(layer_res_type) != num_levels - 1 or set(layer_res_type) != {"ResnetBlock2D"}:
            raise ValueError(
                f"layer_res_type must be {num_levels - 1} times 'ResnetBlock2D' for "
                f"{num_levels} levels, got {list(layer_res_type)}"
            )
        if encoder_num_resblocks < 1 or decoder_num_resblocks < 2:
            raise ValueError(
                "encoder_num_resblocks must be at least 1 and decoder_num_resblocks at least 2, "
                f"got {encoder_num_resblocks} and {decoder_num_resblocks}"
            )
        # Two halves of the same parts; the decoder may be wider, or modulated.
        common = (dropout, norm_type, mid_layers_type, activation)
        self.encoder = EncoderImage(
            latent_dim, base_channels, encoder_num_resblocks, encoder_energy_flow_size, *common
        )
        self.decoder = DecoderImage(
            latent_dim,
            decoder_base_channels,
            decoder_num_resblocks,
            decoder_energy_flow_size,
            *common,
            spade,
        )
        self.register_to_config(decoder_base_channels=decoder_base_channels)
        self.set_latent_statistics(shift, scale)
        self.tiling: Tiling | None = None
        self.to(memory_format=torch.channels_last)

    @property
    def spatial_factor(self) -> int:
        return 2 ** len(self.config.base_channels)

    @property
    def last_layer(self) -> Tensor:
        return self.decoder.conv_out.weight

    def encode(self, x: Tensor) -> EncoderOutput:
        """Posterior of images in [-1, 1], (B, 3, H, W), sides multiples of `spatial_factor`."""
        factor = self.spatial_factor
        if x.dim() != 4 or x.shape[1] != 3:
            raise ValueError(f"images must be (B, 3, H, W), got {tuple(x.shape)}")
        if 0 in x.shape or x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(
                f"height and width must be multiples of {factor}, got {tuple(x.shape[2:])}; "
                "pad with pad_to_multiple and crop the result"
            )
        x = packed(x.to(self.last_layer.dtype))
        if self.tiling and self.tiling.applies(x.shape[2] // factor, x.shape[3] // factor):
            moments = self.tiling.run(lambda tile: self.encoder(tile)[0], x, (factor, 1))
            return EncoderOutput(DiagonalGaussian(moments))
        moments, levels = self.encoder(x)
        return EncoderOutput(DiagonalGaussian(moments), levels)

    def decode(self, z: Tensor) -> DecoderOutput:
        """Images, not clamped, of latents (B, C, h, w) as `encode` gives them (not normalized)."""
        if z.dim() != 4 or z.shape[1] != self.config.latent_dim:
            raise ValueError(
                f"latents must be (B, {self.config.latent_dim}, h, w), got {tuple(z.shape)}"
            )
        z = packed(z.to(self.last_layer.dtype))
        if self.tiling and self.tiling.applies(*z.shape[2:]):
            factors = (1, self.spatial_factor)
            return DecoderOutput(self.tiling.run(lambda tile: self.decoder(tile)[0], z, factors))
        return DecoderOutput(*self.decoder(z))

    def _optional_parts(self, embedded: dict, overrides: dict) -> list:
        message = "no SPADE modulation in the weights; a fresh one changes nothing"
        return [] if embedded.get("spade") else [(lambda key: ".spade" in key, message)]

    def compile_blocks(self, mode: str | None = None) -> None:
        """Compiles block by block, in place; names in the state dict stay as they are.

        The decoder's tail stays eager, so that the last layer's gradient, which the adaptive
        adversarial weight needs, runs no other layer's backward pass. Each new image or batch size
        compiles anew.
        """
        encoder, decoder = self.encoder, self.decoder
        for block in (*encoder.down_blocks, *encoder.mid, *decoder.mid, *decoder.up_blocks):
            # Two blocks of one class differ in size: no reason to compile for any size.
            block.compile(mode=mode, dynamic=False)

    def enable_tiling(self, tile_size: int = 512, overlap: int = 128) -> None:
        """From here on takes images larger than a tile apart and blends the parts' results.

        Sizes are in image pixels; neighbours share at least ``overlap``. Memory then depends on the
        tile, not on the image. `extra_output` is None, and results differ slightly: attention,
        SPADE's resizing and the borders of convolutions see one tile.
        """
        self.tiling = Tiling.from_pixels(tile_size, overlap, self.spatial_factor)

    def disable_tiling(self) -> None:
        """Takes images whole again."""
        self.tiling = None
