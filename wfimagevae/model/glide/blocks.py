"""Blocks of GLIDE; names, shapes and order of the parameters are those of its public weights.

Source: Nichol et al. 2021 (GLIDE), arXiv:2112.10741; Dhariwal and Nichol 2021 (ADM),
arXiv:2105.05233, for the U-Net.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wfimagevae.model.flow.small_networks import GroupNorm, zeroed
from wfimagevae.model.flow.transformer_blocks import attend

GROUPS = 32
_FEW_KEYS = 2048
group_norm = partial(GroupNorm, num_groups=GROUPS, eps=1e-5)


class Pointwise(nn.Conv1d):
    """A linear layer of tokens (B, N, in), whose weight (out, in, 1) is a convolution's."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight[..., 0], self.bias)


class ResBlock(nn.Module):
    """Norm, swish, 3x3, norm that the condition scales and shifts, swish, 3x3, plus the input.

    It takes (B, C, H, W) and a condition (B, cond_width). ``factor`` 2 doubles height and width
    before the first convolution, 0.5 halves them.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        cond_width: int,
        dropout: float,
        factor: float = 1,
    ):
        super().__init__()
        self.factor = factor
        self.in_layers = nn.Sequential(
            group_norm(in_channels),
            nn.SiLU(),
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(cond_width, 2 * out_channels))
        self.out_layers = nn.Sequential(
            group_norm(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        is_same = in_channels == out_channels
        self.skip_connection = nn.Identity() if is_same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        norm, swish, conv = self.in_layers
        h = conv(self._rescaled(swish(norm(x))))
        scale, shift = self.emb_layers(c)[..., None, None].chunk(2, dim=1)
        norm, swish, dropout, conv = self.out_layers
        h = swish(torch.addcmul(shift, norm(h), 1 + scale))
        return self.skip_connection(self._rescaled(x)) + conv(dropout(h))

    def _rescaled(self, x: Tensor) -> Tensor:
        if self.factor == 1:
            return x
        if self.factor < 1:
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


class AttentionBlock(nn.Module):
    """All places of (B, C, H, W) attend to a text's tokens (B, L, text_width) and to each other."""

    def __init__(self, channels: int, head_width: int, text_width: int):
        super().__init__()
        self.head_width = head_width
        self.norm = group_norm(channels)
        self.qkv = Pointwise(channels, 3 * channels)
        self.encoder_kv = Pointwise(text_width, 2 * channels)
        self.proj_out = zeroed(Pointwise(channels, channels))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        h = self.norm(x).flatten(2).transpose(1, 2)  # (B, H W, C)
        q, k, v = interleaved_heads(self.qkv(h), 3, self.head_width)
        text_k, text_v = interleaved_heads(self.encoder_kv(tokens), 2, self.head_width)
        k, v = torch.cat([text_k, k], dim=2), torch.cat([text_v, v], dim=2)
        h = self.proj_out(_attend(q, k, v))
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])


class Stage(nn.Sequential):
    """Blocks of one step of the U-Net; ``skip`` is what was kept on the way down, or None."""

    def forward(self, x: Tensor, c: Tensor, tokens: Tensor, skip: Tensor | None = None) -> Tensor:
        x = x if skip is None else torch.cat([x, skip], dim=1)
        for block in self:
            x = block(x, tokens if isinstance(block, AttentionBlock) else c)
        return x


class TextBlock(nn.Module):
    """Attention in both directions and an MLP, each behind a norm, of tokens (B, L, width)."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.head_width = width // num_heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.ModuleDict(
            {"c_qkv": nn.Linear(width, 3 * width), "c_proj": nn.Linear(width, width)}
        )
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)}
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = interleaved_heads(self.attn.c_qkv(self.ln_1(x)), 3, self.head_width)
        x = x + self.attn.c_proj(_attend(q, k, v))
        return x + self.mlp.c_proj(F.gelu(self.mlp.c_fc(self.ln_2(x))))


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of (B, heads, N, d) to all of the keys, with heads side by side: (B, N, C)."""
    is_half = q.device.type == "cpu" and q.dtype == torch.bfloat16
    if is_half and k.shape[2] <= _FEW_KEYS and not torch.compiler.is_compiling():
        # In half the time of PyTorch's own there, and as precise as the public code.
        h = (q * q.shape[3] ** -0.5 @ k.transpose(2, 3)).softmax(-1) @ v
    else:
        h = attend(q, k, v)
    return h.transpose(1, 2).flatten(2)


def interleaved_heads(x: Tensor, count: int, head_width: int) -> tuple[Tensor, ...]:
    """``count`` projections, side by side within each head, to (B, heads, N, head_width) each."""
    return x.unflatten(2, (-1, count, head_width)).permute(3, 0, 2, 1, 4).unbind(0)
