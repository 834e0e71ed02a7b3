"""WFVAE: the video autoencoder of two levels of Haar bands, 4 or 8 times shorter, 8 times smaller.

It is the model of WF-VAE-L-16Chn and of Open-Sora-Plan 1.3 (factor 4) and 1.5 (factor 8).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from wfvae_video.autoencoder import VideoAutoencoder
from wfvae_video.blocks import (
    LEVELS,
    CausalConv3d,
    Config,
    Downsample,
    FrameConv2d,
    Upsample,
    res_blocks,
)
from wfvae_video.halves import NUM_BANDS, Decoder, Encoder
from wfvae_video.wavelet import AXES_3D

LAYERS = ("dowmsample_block", "downsample_wavelet", "upsample_block", "upsample_wavelet")


@dataclass(frozen=True, kw_only=True)
class WFVAEConfig(Config):
    """Keys of a WFVAE, with the defaults of the public code.

    ``base_channels`` is the width at the finest level, an energy flow's size that of the Haar bands
    beside a half. The four ``l1_`` keys (one is misspelt in public files) name the layers of the
    finer level: all per frame for a temporal factor of 4, all in time for 8.
    """

    latent_dim: int = 8
    base_channels: int = 128
    encoder_num_resblocks: int = 2
    encoder_energy_flow_hidden_size: int = 64
    decoder_num_resblocks: int = 2
    decoder_energy_flow_hidden_size: int = 128
    attention_type: str = "AttnBlock3DFix"
    use_attention: bool = True
    norm_type: str = "groupnorm"
    t_interpolation: str = "nearest"
    connect_res_layer_num: int = 1  # residual blocks before coefficients in the decoder
    scale: Sequence[float] = (0.18215,) * 4
    shift: Sequence[float] = (0.0,) * 4
    l1_dowmsample_block: str = "Downsample"
    l1_downsample_wavelet: str = "HaarWaveletTransform2D"
    l1_upsample_block: str = "Upsample"
    l1_upsample_wavelet: str = "InverseHaarWaveletTransform2D"
    l2_dowmsample_block: str = "Spatial2xTime2x3DDownsample"
    l2_downsample_wavelet: str = "HaarWaveletTransform3D"
    l2_upsample_block: str = "Spatial2xTime2x3DUpsample"
    l2_upsample_wavelet: str = "InverseHaarWaveletTransform3D"

    # AttnBlock3D mixes channels with times; no public config names it.
    choices = {"attention_type": ["AttnBlock3DFix"]} | Config.choices

    def __post_init__(self):
        super().__post_init__()
        per_frame, in_time = _layers(WFVAEConfig, "l1"), _layers(WFVAEConfig, "l2")
        l1, l2 = _layers(self, "l1"), _layers(self, "l2")
        if l1 not in (per_frame, in_time) or l2 != in_time:
            raise ValueError(f"l1_ keys {l1} and l2_ keys {l2} are neither of factor 4 nor of 8")

    @property
    def layer_type(self) -> list[str]:
        return ["hw" if self.l1_upsample_block == "Upsample" else "thw", "thw"]

    @property
    def mid_layers_type(self) -> list[str]:
        return ["ResnetBlock3D", *[self.attention_type] * self.use_attention, "ResnetBlock3D"]


def _layers(config: WFVAEConfig | type[WFVAEConfig], level: str) -> list[str]:
    return [getattr(config, f"{level}_{name}") for name in LAYERS]


class WFVAEEncoder(Encoder):
    """Layers of a WFVAE's encoder."""

    def __init__(self, config: WFVAEConfig):
        c, e = config.base_channels, config.encoder_energy_flow_hidden_size
        super().__init__(config, (2 * c + e, 4 * c, 4 * c))
        (conv, axes), repeats = LEVELS[config.layer_type[0]], 1 + config.encoder_num_resblocks
        blocks = res_blocks(FrameConv2d, [c] * repeats, config)
        self.down1 = nn.ModuleList([FrameConv2d(NUM_BANDS, c), *blocks, Downsample(conv, c)])
        blocks = res_blocks(CausalConv3d, [2 * c] * repeats, config)
        halving = Downsample(CausalConv3d, 2 * c)
        self.down2 = nn.ModuleList([FrameConv2d(c + e, 2 * c), *blocks, halving])
        self.connect_l1 = FrameConv2d(3 * 2 ** len(axes), e)
        self.connect_l2 = FrameConv2d(NUM_BANDS, e)
        self.stages = [(self.down1, axes, self.connect_l1), (self.down2, AXES_3D, self.connect_l2)]
        self.tail = [*self.mid]


class WFVAEDecoder(Decoder):
    """Layers of a WFVAE's decoder."""

    def __init__(self, config: WFVAEConfig):
        c, f = config.base_channels, config.decoder_energy_flow_hidden_size
        super().__init__(config, (4 * c, 4 * c, 4 * c + f), c)
        (conv, axes), repeats = LEVELS[config.layer_type[0]], config.decoder_num_resblocks
        self.up2 = res_blocks(CausalConv3d, [4 * c] * (1 + repeats), config)
        self.up2.append(Upsample(CausalConv3d, 4 * c, config))
        self.up2 += res_blocks(CausalConv3d, [4 * c, 4 * c + f], config)
        self.up1 = res_blocks(CausalConv3d, [4 * c, *[2 * c] * repeats], config)
        self.up1.append(Upsample(conv, 2 * c, config))
        self.up1 += res_blocks(CausalConv3d, [2 * c, 2 * c], config)
        self.layer = res_blocks(CausalConv3d, [2 * c, c, c], config)
        widths = [f] * (1 + config.connect_res_layer_num)
        self.connect_l1 = res_blocks(CausalConv3d, widths, config)
        self.connect_l1.append(FrameConv2d(f, 3 * 2 ** len(axes)))
        self.connect_l2 = res_blocks(CausalConv3d, widths, config)
        self.connect_l2.append(FrameConv2d(f, NUM_BANDS))
        self.stages = [
            ([self.conv_in, *self.mid], 4 * c, self.connect_l2, AXES_3D),
            (self.up2, 4 * c, self.connect_l1, axes),
        ]
        self.tail = [*self.up1, *self.layer]


class WFVAE(VideoAutoencoder):
    """Variational autoencoder of clips; the arguments are those of `WFVAEConfig`."""

    config_class, encoder_class, decoder_class = WFVAEConfig, WFVAEEncoder, WFVAEDecoder
    is_finest_first = True
