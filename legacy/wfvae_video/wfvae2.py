"""WFVAE2: the video autoencoder of any number of levels, from which the image model grew.

Levels are those of the image model, in space alone or in time as well. Its code is public; weights
of it are not known to be.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from wfvae_video.autoencoder import VideoAutoencoder
from wfvae_video.blocks import (
    CONVS,
    LEVELS,
    Config,
    Downsample,
    FrameConv2d,
    ResnetBlock,
    Upsample,
    res_blocks,
)
from wfvae_video.halves import NUM_BANDS, Decoder, Encoder


@dataclass(frozen=True, kw_only=True)
class WFVAE2Config(Config):
    """Keys of a WFVAE2, with the defaults of the public code.

    ``base_channels`` are widths, finest level first, one more than there are levels (those of the
    decoder are the same if it has none); ``layer_res_type`` says of each level which residual
    blocks it has. The decoder's ``num_resblocks`` count the one that branches bands off.
    """

    latent_dim: int = 4
    base_channels: Sequence[int] = (128, 256, 512)
    decoder_base_channels: Sequence[int] | None = None
    encoder_num_resblocks: int = 2
    encoder_energy_flow_size: int = 128
    decoder_num_resblocks: int = 3
    decoder_energy_flow_size: int = 128
    norm_type: str = "layernorm"
    t_interpolation: str = "trilinear"
    layer_type: Sequence[str] = ("hw", "thw")
    layer_res_type: Sequence[str] = ("ResnetBlock2D", "ResnetBlock3D")
    mid_layers_type: Sequence[str] = ("ResnetBlock3D", "Attention3DFix", "ResnetBlock3D")
    input_type: str = "video"
    scale: Sequence[float] = (0.18215,) * 8
    shift: Sequence[float] = (0.0,) * 8

    choices = Config.choices | {"layer_res_type": [*CONVS], "input_type": ["video"]}

    def __post_init__(self):
        super().__post_init__()
        counts = [len(self.layer_type), len(self.layer_res_type)]
        counts += [len(self.base_channels) - 1, len(self.decoder_widths) - 1]
        if len({*counts}) > 1 or not self.layer_type:
            raise ValueError(f"layer_type, layer_res_type and channels are of {counts} levels")

    @property
    def decoder_widths(self) -> Sequence[int]:
        return self.decoder_base_channels or self.base_channels


class WFVAE2Encoder(Encoder):
    """Layers of a WFVAE2's encoder."""

    def __init__(self, config: WFVAE2Config):
        widths, e = config.base_channels, config.encoder_energy_flow_size
        super().__init__(config, (widths[-1],) * 3)
        self.conv_in = FrameConv2d(NUM_BANDS, widths[0])
        self.down_blocks, self.stages, self.tail = nn.ModuleList(), [], [self.conv_in]
        levels = zip(pairwise(widths), config.layer_type, config.layer_res_type, strict=True)
        for (first, last), layer_type, res_type in levels:
            (level_conv, axes), conv = LEVELS[layer_type], CONVS[res_type]
            block = nn.ModuleDict()
            block["res_block"] = res_blocks(conv, [first] * config.encoder_num_resblocks, config)
            block["down"] = Downsample(level_conv, first)
            block["in_flow_conv"] = FrameConv2d(3 * 2 ** len(axes), e)
            block["out_res_block"] = ResnetBlock(conv, first + e, last, config)
            self.down_blocks.append(block)
            layers = [*self.tail, *block["res_block"], block["down"]]
            self.stages.append((layers, axes, block["in_flow_conv"]))
            self.tail = [block["out_res_block"]]
        self.tail += self.mid


class WFVAE2Decoder(Decoder):
    """Layers of a WFVAE2's decoder."""

    has_activation_out = False

    def __init__(self, config: WFVAE2Config):
        widths, f = config.decoder_widths[::-1], config.decoder_energy_flow_size
        super().__init__(config, (widths[0],) * 3, widths[-1])
        self.up_blocks, self.stages, self.tail = nn.ModuleList(), [], [self.conv_in, *self.mid]
        kinds = config.layer_type[::-1], config.layer_res_type[::-1]
        for (first, last), layer_type, res_type in zip(pairwise(widths), *kinds, strict=True):
            (level_conv, axes), conv = LEVELS[layer_type], CONVS[res_type]
            block, repeats = nn.ModuleDict(), config.decoder_num_resblocks - 1
            block["branch_conv"] = ResnetBlock(level_conv, first, first + f, config)
            block["out_flow_conv"] = res_blocks(level_conv, [f, f], config)
            block["out_flow_conv"].append(FrameConv2d(f, 3 * 2 ** len(axes)))
            block["res_block"] = res_blocks(conv, [first] * repeats, config)
            block["up"] = Upsample(level_conv, first, config)
            block["out_res_block"] = ResnetBlock(conv, first, last, config)
            self.up_blocks.append(block)
            layers = [*self.tail, block["branch_conv"]]
            self.stages.append((layers, first, block["out_flow_conv"], axes))
            self.tail = [*block["res_block"], block["up"], block["out_res_block"]]


class WFVAE2(VideoAutoencoder):
    """Variational autoencoder of clips; the arguments are those of `WFVAE2Config`."""

    config_class, encoder_class, decoder_class = WFVAE2Config, WFVAE2Encoder, WFVAE2Decoder
