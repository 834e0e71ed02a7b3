"""Networks for points and small images: an MLP, a few convolutions for first tries, a U-Net."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import cycle, islice

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual

from wfimagevae.model.flow.normalize import EPS, at_least_float32, standardize
from wfimagevae.model.flow.transformer_blocks import attend, split_heads
from wfimagevae.model.flow.velocity_model import TIME_SCALE, VelocityModel
from wfimagevae.model.modeling_base import compile_each
from wfimagevae.model.registry import Depth, ModelRegistry, Natural, Share, Size


def zeroed(layer: nn.Module) -> nn.Module:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class MlpBlock(nn.Module):
    """Two layers, between which the condition scales and shifts, plus the input, (B, width)."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, width)
        self.modulation = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.modulation(F.silu(c)).chunk(2, dim=1)
        h = torch.addcmul(shift, self.fc1(F.silu(x)), 1 + scale)
        return x + self.fc2(F.silu(h))


@ModelRegistry.register("MLP")
class MLP(VelocityModel):
    """Velocities of points; the arguments are the keys of config.json.

    Every part is smooth, as average velocities are learned from derivatives.
    """

    @register_to_config
    def __init__(
        self,
        num_dims: Size = 2,
        hidden_size: Size = 256,
        depth: Depth = 3,
        num_classes: Natural = 0,
        average_velocity: bool = False,
    ):
        super().__init__()
        self.sample_shape = (num_dims,)
        self.layer_in = nn.Linear(num_dims, hidden_size)
        self.blocks = nn.ModuleList(MlpBlock(hidden_size) for _ in range(depth))
        self.layer_out = zeroed(nn.Linear(hidden_size, num_dims))
        self.add_embedders(hidden_size, TIME_SCALE)

    def predict(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        h, run = self.layer_in(x.to(self.layer_in.weight.dtype)), self.run
        for block in self.blocks:
            h = run(block, h, c)
        return self.layer_out(F.silu(h))


class GroupNorm(nn.GroupNorm):
    """GroupNorm of (B, C, H, W), affine; by itself at most 32 groups of at least 4 channels."""

    def __init__(self, channels: int, num_groups: int | None = None, eps: float = EPS):
        if num_groups is None and channels % 4:
            raise ValueError(
                f"base_channels must give widths that are multiples of 4, got {channels}"
            )
        super().__init__(num_groups or math.gcd(32, channels // 4), channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        # Besides, the kernel's forward derivative fails on some strides before PyTorch 2.11.
        if torch.compiler.is_compiling() or unpack_dual(x).tangent is not None:
            h = at_least_float32(x).unflatten(1, (self.num_groups, -1))  # (B, groups, n, H, W)
            h = standardize(h, (2, 3, 4), self.eps).flatten(1, 2)
            return (h * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)).to(x.dtype)
        if x.device.type != "cpu":  # the CPU's kernel takes bfloat16 with float32 parameters
            weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return F.group_norm(x, self.num_groups, weight, bias, self.eps)


class ResidualBlock(nn.Module):
    """Norm, swish, 3x3, norm that the condition scales and shifts, swish, 3x3, plus the input.

    It takes an input (B, C, H, W) and a condition (B, cond_width); the first convolution is
    dilated.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        cond_width: int,
        dropout: float = 0.0,
        dilation: int = 1,
    ):
        super().__init__()
        self.norm1 = GroupNorm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation)
        self.modulation = nn.Linear(cond_width, 2 * out_channels)
        self.norm2 = GroupNorm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        is_same = in_channels == out_channels
        self.skip = nn.Identity() if is_same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = F.silu(self.norm1(x))
        if x.is_cpu and self.conv1.dilation != (1, 1):
            # In bfloat16 and channels_last the CPU's gradients of dilated weights are noise, or
            # it crashes (PyTorch 2.14, AVX-512).
            with torch.autocast("cpu", enabled=False):
                h = self.conv1(h.to(self.conv1.weight.dtype))
        else:
            h = self.conv1(h)
        h = self.norm2(h)
        scale, shift = self.modulation(F.silu(c))[..., None, None].chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, h, 1 + scale))
        return self.skip(x) + self.conv2(self.dropout(h))


@ModelRegistry.register("SmallCNN")
class SmallCNN(VelocityModel):
    """Velocities of small images at one resolution; the arguments are the keys of config.json.

    ``base_channels`` is the width, a multiple of 4; the blocks' dilations are 1, 2, 4, 1, 2, ...
    """

    @register_to_config
    def __init__(
        self,
        input_size: Size = 32,
        in_channels: Size = 3,
        base_channels: Size = 36,
        depth: Depth = 3,
        num_classes: Natural = 0,
        average_velocity: bool = False,
    ):
        super().__init__()
        self.sample_shape = (in_channels, input_size, input_size)
        self.conv_in = nn.Conv2d(in_channels, base_channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            ResidualBlock(*[base_channels] * 3, dilation=dilation)
            for dilation in islice(cycle((1, 2, 4)), depth)
        )
        self.norm_out = GroupNorm(base_channels)
        self.conv_out = zeroed(nn.Conv2d(base_channels, in_channels, 3, padding=1))
        self.add_embedders(base_channels, TIME_SCALE)
        self.to(memory_format=torch.channels_last)

    def predict(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        h = self.conv_in(x.to(self.conv_in.weight.dtype, memory_format=torch.channels_last))
        run = self.run
        for block in self.blocks:
            h = run(block, h, c)
        return self.conv_out(F.silu(self.norm_out(h)))


class SelfAttention(nn.Module):
    """Attention over all places of (B, C, H, W), plus the input."""

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm = GroupNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        h = self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        q, k, v = split_heads(self.qkv(h), 3, self.num_heads)  # (B, heads, H W, d) each
        h = attend(q, k, v).transpose(1, 2)
        h = self.proj(h.reshape(batch, height, width, channels))
        return x + h.permute(0, 3, 1, 2)


class Stage(nn.Module):
    """A residual block and, where asked for, attention."""

    def __init__(
        self, in_channels: int, out_channels: int, num_heads: int, cond_width: int, dropout: float
    ):
        super().__init__()
        self.block = ResidualBlock(in_channels, out_channels, cond_width, dropout)
        self.attn = SelfAttention(out_channels, num_heads) if num_heads else nn.Identity()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.attn(self.block(x, c))


class Upsample(nn.Conv2d):
    """Doubles height and width."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))


@ModelRegistry.register("UNet")
class UNet(VelocityModel):
    """Velocities of small images; the arguments are the keys of config.json.

    The width is ``base_channels``, a multiple of 4, at full size, and that times ``channel_mult``
    at each level, which halves the size. ``num_res_blocks`` are those of a level of the way down;
    one more on the way up. ``attention_resolutions`` are sizes in pixels.

    Source: Dhariwal and Nichol 2021 (ADM), arXiv:2105.05233, with continuous times.
    """

    @register_to_config
    def __init__(  # noqa: PLR0913 - diffusers reads the config's keys off this signature
        self,
        input_size: Size = 32,
        in_channels: Size = 3,
        base_channels: Size = 128,
        channel_mult: Sequence[Size] = (1, 2, 2, 2),
        num_res_blocks: Depth = 3,
        attention_resolutions: Sequence[Natural] = (16, 8),
        num_heads: Size = 4,
        dropout: Share = 0.1,
        num_classes: Natural = 0,
        average_velocity: bool = False,
    ):
        super().__init__()
        if (
            not channel_mult
            or input_size % 2 ** (len(channel_mult) - 1)
            or base_channels % num_heads
        ):
            raise ValueError(
                "channel_mult needs levels, input_size must be a multiple of 2 for each but one, "
                "and base_channels of num_heads, got "
                f"{list(channel_mult)}, {input_size}, {base_channels} and {num_heads}"
            )
        self.sample_shape = (in_channels, input_size, input_size)
        widths = [base_channels * mult for mult in channel_mult]
        sizes = [input_size // 2**level for level in range(len(widths))]
        heads = [num_heads if size in attention_resolutions else 0 for size in sizes]
        cond_width = 4 * base_channels
        stage = partial(Stage, cond_width=cond_width, dropout=dropout)
        # Down: each block's output is kept for the way up.
        self.conv_in = nn.Conv2d(in_channels, base_channels, 3, padding=1)
        self.down_blocks, skips = nn.ModuleList(), [base_channels]
        for level, width in enumerate(widths):
            for _ in range(num_res_blocks):
                self.down_blocks.append(stage(skips[-1], width, heads[level]))
                skips.append(width)
            if level < len(widths) - 1:
                self.down_blocks.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
        # The coarsest level.
        width = widths[-1]
        self.mid_blocks = nn.ModuleList([stage(width, width, num_heads), stage(width, width, 0)])
        # Up: each block reads one of the outputs that were kept, the latest first.
        self.up_blocks = nn.ModuleList()
        for level in reversed(range(len(widths))):
            for _ in range(num_res_blocks + 1):
                self.up_blocks.append(stage(width + skips.pop(), widths[level], heads[level]))
                width = widths[level]
            if level:
                self.up_blocks.append(Upsample(width))
        self.norm_out = GroupNorm(width)
        self.conv_out = zeroed(nn.Conv2d(width, in_channels, 3, padding=1))
        self.add_embedders(cond_width, TIME_SCALE)
        self.to(memory_format=torch.channels_last)

    def predict(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        h = self.conv_in(x.to(self.conv_in.weight.dtype, memory_format=torch.channels_last))
        # Down, at the coarsest level, and up again with what was kept.
        skips = [h]
        for block in self.down_blocks:
            h = self.run(block, h, c) if isinstance(block, Stage) else block(h)
            skips.append(h)
        for block in self.mid_blocks:
            h = self.run(block, h, c)
        for block in self.up_blocks:
            if isinstance(block, Upsample):
                h = block(h)
            else:
                h = self.run(block, torch.cat([h, skips.pop()], dim=1), c)
        return self.conv_out(F.silu(self.norm_out(h)))

    def blocks_to_shard(self) -> list[nn.Module]:
        blocks = (*self.down_blocks, *self.mid_blocks, *self.up_blocks)
        return [block for block in blocks if isinstance(block, Stage)]

    def compile_blocks(self, mode: str | None = None) -> None:
        """Compiles the network as a whole."""
        compile_each([self], mode)
