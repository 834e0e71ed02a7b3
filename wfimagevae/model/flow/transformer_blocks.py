"""Blocks of the flow transformer; names of parameters are those of DiT and SiT."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from wfimagevae.model.flow.embed import rotate
from wfimagevae.model.flow.normalize import TOKEN_NORMS, RMSNorm

_FEW_TOKENS = 1024


class PatchEmbedder(nn.Module):
    """A token for each patch of (B, C, H, W), row by row: (B, N, width)."""

    def __init__(self, patch_size: int, in_channels: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        # A product, as PyTorch 2.8 cannot compile a convolution's forward derivative.
        patches = F.unfold(x, self.proj.kernel_size, stride=self.proj.stride)  # (B, C p p, N)
        return F.linear(patches.transpose(1, 2), self.proj.weight.flatten(1), self.proj.bias)


class Attention(nn.Module):
    """Self-attention of (B, N, width); a mask, bool (B, N), says which tokens are attended to."""

    def __init__(self, width: int, num_heads: int, qk_norm: bool):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.q_norm = RMSNorm(width // num_heads) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(width // num_heads) if qk_norm else nn.Identity()

    def forward(
        self, x: Tensor, rotation: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        return self.join(attend(*self.project(x, rotation), mask))

    def project(self, x: Tensor, rotation: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, heads, N, d) each."""
        q, k, v = split_heads(self.qkv(x), 3, self.num_heads)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation).to(v.dtype), rotate(k, rotation).to(v.dtype)
        return q, k, v

    def join(self, h: Tensor) -> Tensor:
        """What was attended to, (B, heads, N, d), to (B, N, width)."""
        return self.proj(h.transpose(1, 2).flatten(2))


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

    ``mlp_ratio`` is the hidden width of the MLP, relative to ``width``; ``qk_norm`` normalizes each
    head's queries and keys.
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
        """Tokens, (B, N, width), from tokens and a condition, (B, width)."""
        (shift, scale, gate), of_mlp = self.modulations(c)
        x = x + gate * self.attn(modulate(self.norm(x), shift, scale), rotation)
        return self.feed_forward(x, *of_mlp)

    def modulations(self, c: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Shift, scale and gate, (B, 1, width) each, of the attention and of the MLP."""
        modulation = self.adaLN_modulation(c)[:, None].chunk(6, dim=-1)
        return modulation[:3], modulation[3:]

    def feed_forward(self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        return x + gate * self.mlp(modulate(self.norm(x), shift, scale))


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


def split_heads(x: Tensor, count: int, num_heads: int) -> tuple[Tensor, ...]:
    """``count`` projections side by side, (B, N, count * width), to (B, heads, N, d) each."""
    return x.unflatten(2, (count, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """`scaled_dot_product_attention` of queries, keys and values, (B, heads, N, d).

    The mask, bool (B, keys), says which keys count; each sample has at least one.
    """
    if mask is not None:  # the same for all heads and queries
        mask = mask[:, None, None, :]  # (B, 1, 1, keys)
    # The fused CPU kernel takes two to ten times as long in backward, in bfloat16.
    is_slow = q.device.type == "cpu" and q.dtype != torch.float32 and k.shape[-2] <= _FEW_TOKENS
    if is_slow and not torch.compiler.is_compiling():
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, x, 1 + scale)
