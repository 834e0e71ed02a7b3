"""Blocks of the flow transformer; names of parameters are those of DiT and SiT."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wfimagevae.model.flow.attend import attend
from wfimagevae.model.flow.embed import rotate
from wfimagevae.model.flow.normalize import TOKEN_NORMS, RMSNorm


class PatchEmbedder(nn.Module):
    """(B, C, H, W) to a token for each patch, row by row: (B, N, width)."""

    def __init__(self, patch_size: int, in_channels: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention of (B, N, width); ``qk_norm`` normalizes each head's queries and keys."""

    def __init__(self, width: int, num_heads: int, qk_norm: bool):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.q_norm = RMSNorm(width // num_heads) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(width // num_heads) if qk_norm else nn.Identity()

    def forward(self, x: Tensor, rotation: Tensor | None = None) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, N, d) each
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation).to(v.dtype), rotate(k, rotation).to(v.dtype)
        h = attend(q, k, v)
        return self.proj(h.transpose(1, 2).reshape(batch, length, width))


class GeluMlp(nn.Module):
    """Two layers around a GELU (its tanh form)."""

    def __init__(self, width: int, mlp_ratio: float):
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class SwiGluMlp(nn.Module):
    """Two layers around ``silu(a) * b``, of about the cost of a `GeluMlp` of that ratio.

    Source: Shazeer 2020, arXiv:2002.05202.
    """

    def __init__(self, width: int, mlp_ratio: float):
        super().__init__()
        hidden = width * mlp_ratio * 2 / 3  # three matrices in place of two
        multiple = 64 if hidden >= 512 else 8
        hidden = max(1, round(hidden / multiple)) * multiple
        self.fc1, self.fc2 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.silu(a) * b)


MLPS = {"gelu": GeluMlp, "swiglu": SwiGluMlp}


class TransformerBlock(nn.Module):
    """Attention and MLP, each behind a norm that the condition shifts and scales (adaLN-Zero).

    Args:
        width: Of the tokens.
        num_heads: Of the attention.
        mlp_ratio: Hidden width of the MLP, relative to ``width``.
        norm: ``layernorm`` or ``rmsnorm``.
        mlp: ``gelu`` or ``swiglu``.
        qk_norm: Normalize queries and keys.
    """

    def __init__(
        self, width: int, num_heads: int, mlp_ratio: float, norm: str, mlp: str, qk_norm: bool
    ):
        super().__init__()
        self.norm = TOKEN_NORMS[norm]
        self.attn = Attention(width, num_heads, qk_norm)
        self.mlp = MLPS[mlp](width, mlp_ratio)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor, rotation: Tensor | None = None) -> Tensor:
        """(B, N, width) tokens and (B, width) condition to tokens."""
        modulation = self.adaLN_modulation(c)[:, None].chunk(6, dim=-1)  # (B, 1, width) each
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation
        x = x + gate * self.attn(modulate(self.norm(x), shift, scale), rotation)
        return x + mlp_gate * self.mlp(modulate(self.norm(x), mlp_shift, mlp_scale))


class FinalLayer(nn.Module):
    """Tokens to the values of their patches, (B, N, out_width)."""

    def __init__(self, width: int, out_width: int, norm: str):
        super().__init__()
        self.norm = TOKEN_NORMS[norm]
        self.linear = nn.Linear(width, out_width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, dim=-1)
        return self.linear(modulate(self.norm(x), shift, scale))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``x * (1 + scale) + shift``."""
    return torch.addcmul(shift, x, 1 + scale)
