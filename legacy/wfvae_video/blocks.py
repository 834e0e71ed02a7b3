"""Layers of both autoencoders, and the keys of config.json that they share.

Clips are (B, C, T, H, W) in channels_last_3d memory, where the frames of all clips, (B T, C, H, W),
are a view. Names in the state dict are those of public checkpoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wfvae_video.chunks import Past
from wfvae_video.wavelet import AXES_2D, AXES_3D

EPS = 1e-6
NUM_GROUPS = 32


def to_frames(x: Tensor) -> Tensor:
    """(B, C, T, H, W) to (B T, C, H, W)."""
    return x.transpose(1, 2).flatten(0, 1)


def to_clips(frames: Tensor, batch_size: int) -> Tensor:
    """Inverse of `to_frames`."""
    return frames.unflatten(0, (batch_size, -1)).transpose(1, 2)


class FrameConv2d(nn.Conv2d):
    """Convolution of each frame, padded unless its stride is 2."""

    def __init__(self, in_channels: int, out_channels: int, size: int = 3, stride: int = 1):
        super().__init__(in_channels, out_channels, size, stride, size // 2 if stride == 1 else 0)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        return to_clips(super().forward(to_frames(x)), len(x))


class CausalConv3d(nn.Module):
    """Convolution that sees no later frame, frame 0 before itself; padded unless of stride 2."""

    def __init__(self, in_channels: int, out_channels: int, size: int = 3, stride: int = 1):
        super().__init__()
        padding = size // 2 if stride == 1 else 0
        self.conv = nn.Conv3d(in_channels, out_channels, size, stride, (0, padding, padding))
        self.num_before, self.num_shared = size - 1, size - stride

    def forward(self, x: Tensor, past: Past) -> Tensor:
        if self.num_before:
            x, has_past = past.recall(self, x)
            if not has_past:
                x = torch.cat([x[:, :, :1]] * self.num_before + [x], dim=2)
            past.keep(self, x[:, :, -self.num_shared :])
        return self.conv(x)


# How each kind of level is halved and doubled: its convolutions, and the axes of its transform.
LEVELS = {"hw": (FrameConv2d, AXES_2D), "thw": (CausalConv3d, AXES_3D)}
# What configs call layers; the default of public WFVAE2 code names a class that it does not have.
CONVS = {"ResnetBlock2D": FrameConv2d, "ResnetBlock3D": CausalConv3d}
ATTENTION = ("AttnBlock3DFix", "Attention3DFix")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Keys of config.json that both autoencoders have.

    ``layer_type`` says of each level behind the first transform, finest first, whether it halves
    space alone (``hw``) or time as well (``thw``). ``scale`` (1 / standard deviation) and ``shift``
    (mean) of the latents are kept for those who train on ``(z - shift) * scale``; models do not
    apply them.
    """

    latent_dim: int
    dropout: float = 0.0
    norm_type: str  # layernorm, or groupnorm, which rules chunks of time out
    t_interpolation: str  # how time is doubled: nearest or trilinear
    scale: Sequence[float]
    shift: Sequence[float]

    # The values that a key, or each entry of its list, may have.
    choices: ClassVar[dict[str, Sequence[str]]] = {
        "norm_type": ["layernorm", "groupnorm"],
        "t_interpolation": ["nearest", "trilinear"],
        "layer_type": [*LEVELS],
        "mid_layers_type": [*CONVS, *ATTENTION],
    }

    def __post_init__(self):
        for key, known in self.choices.items():
            values = getattr(self, key)
            for value in [values] if isinstance(values, str) else values:
                if value not in known:
                    raise ValueError(f"{key} {value!r} is unknown; use {' or '.join(known)}")

    @property
    def temporal_factor(self) -> int:
        return 2 * 2 ** list(self.layer_type).count("thw")

    @property
    def spatial_factor(self) -> int:
        return 2 * 2 ** len(self.layer_type)


class ChannelLayerNorm(nn.Module):
    """LayerNorm over the channels at each position."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)


class FrameGroupNorm(nn.GroupNorm):
    """GroupNorm of each frame by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return to_clips(super().forward(to_frames(x)), len(x))


def build_norm(channels: int, config: Config, conv: type[nn.Module] = CausalConv3d) -> nn.Module:
    """The config's norm; group statistics run over time where the convolutions do."""
    if config.norm_type == "layernorm":
        return ChannelLayerNorm(channels)
    group_norm = FrameGroupNorm if conv is FrameConv2d else nn.GroupNorm
    return group_norm(NUM_GROUPS, channels, eps=EPS)


class ResnetBlock(nn.Module):
    """Norm, swish, convolution, norm, swish, dropout, convolution, plus the input."""

    def __init__(self, conv: type[nn.Module], in_channels: int, out_channels: int, config: Config):
        super().__init__()
        self.norm1 = build_norm(in_channels, config, conv)
        self.conv1 = conv(in_channels, out_channels)
        self.norm2 = build_norm(out_channels, config, conv)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = conv(out_channels, out_channels)
        is_same = in_channels == out_channels
        self.nin_shortcut = None if is_same else conv(in_channels, out_channels, 1)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x), inplace=True), past)
        h = self.conv2(self.dropout(F.silu(self.norm2(h), inplace=True)), past)
        return h.add_(x if self.nin_shortcut is None else self.nin_shortcut(x, past))


def res_blocks(conv: type[nn.Module], widths: Sequence[int], config: Config) -> nn.ModuleList:
    """Residual blocks between successive widths."""
    return nn.ModuleList(ResnetBlock(conv, *pair, config) for pair in pairwise(widths))


class Attention(nn.Module):
    """One head of self-attention over the positions of each frame by itself, plus the input."""

    def __init__(self, channels: int, config: Config):
        super().__init__()
        self.norm = build_norm(channels, config)
        self.q, self.k, self.v, self.proj_out = (
            CausalConv3d(channels, channels, 1) for _ in range(4)
        )

    def forward(self, x: Tensor, past: Past) -> Tensor:
        h = self.norm(x)
        # With a strided last dimension the CPU kernel would hold the matrix of position pairs.
        q, k, v = (
            to_frames(project(h, past)).flatten(2).transpose(1, 2).unsqueeze(1).contiguous()
            for project in (self.q, self.k, self.v)
        )
        h = F.scaled_dot_product_attention(q, k, v)  # (B T, 1, H W, C)
        h = h.squeeze(1).unflatten(1, x.shape[3:]).permute(0, 3, 1, 2)  # (B T, C, H, W)
        return self.proj_out(to_clips(h, len(x)), past).add_(x)


def build_mid(config: Config, first: int, between: int, last: int) -> nn.ModuleList:
    """Layers at the coarsest level, of widths before, between and behind them."""
    names, layers = config.mid_layers_type, nn.ModuleList()
    widths = pairwise([first, *[between] * (len(names) - 1), last])
    for name, (first, last) in zip(names, widths, strict=True):
        if name in ATTENTION:
            layers.append(Attention(first, config))
        else:
            layers.append(ResnetBlock(CONVS[name], first, last, config))
    return layers


class Downsample(nn.Module):
    """Halves height and width, in 3-D time, too, behind a row and a column of zeros at the end."""

    def __init__(self, conv: type[nn.Module], channels: int):
        super().__init__()
        self.conv = conv(channels, channels, stride=2)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)), past)


class Upsample(nn.Module):
    """Doubles height and width, then 3x3; in 3-D time, too: 1 + k frames become 1 + 2k."""

    def __init__(self, conv: type[nn.Module], channels: int, config: Config):
        super().__init__()
        self.mode = "nearest" if conv is FrameConv2d else "bilinear"
        self.neighbour_weight = 0.25 if config.t_interpolation == "trilinear" else 0.0
        self.conv = conv(channels, channels)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        if self.mode == "bilinear":
            x = self._double_time(x, past)
        frames = F.interpolate(to_frames(x), scale_factor=2.0, mode=self.mode)
        return self.conv(to_clips(frames, len(x)), past)

    def _double_time(self, x: Tensor, past: Past) -> Tensor:
        """Doubles all frames but frame 0, which is nobody's neighbour.

        Interpolation reaches one frame ahead, so the later half of a chunk's last frame waits for
        the next chunk.
        """
        parts = []
        if past.is_first:
            parts, x = [x[:, :, :1]], x[:, :, 1:]
        x, has_begun = past.recall(self, x)
        if not has_begun:
            parts.append(x[:, :, :1])
        earlier, later, weight = x[:, :, :-1], x[:, :, 1:], self.neighbour_weight
        pairs = torch.lerp(earlier, later, weight), torch.lerp(later, earlier, weight)
        parts.append(torch.stack(pairs, dim=3).flatten(2, 3))
        if past.is_last:
            parts.append(x[:, :, -1:])
        past.keep(self, x[:, :, -1:])
        return torch.cat(parts, dim=2)
