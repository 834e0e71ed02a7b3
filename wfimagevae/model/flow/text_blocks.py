"""Readers of bytes, and blocks of the flow transformer that also attend to the tokens of a text.

Those take the sizes of a `TransformerBlock`, and give tokens (B, N, width) and text (B, L, width).

Sources: Chen et al. 2023 (PixArt-alpha), arXiv:2310.00426, for cross-attention; Esser et al. 2024
(MMDiT), arXiv:2403.03206, for joint attention.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wfimagevae.model.flow.embed import line_rotation_table, masked_mean
from wfimagevae.model.flow.normalize import RMSNorm
from wfimagevae.model.flow.transformer_blocks import (
    Attention,
    GeluMlp,
    TransformerBlock,
    attend,
    modulate,
    split_heads,
)

HEAD_WIDTH = 32
BYTES_A_TOKEN = 4


class ByteBlock(nn.Module):
    """Attention and MLP, each behind a norm, of tokens (B, L, width)."""

    def __init__(self, width: int):
        super().__init__()
        self.attn_norm, self.mlp_norm = RMSNorm(width), RMSNorm(width)
        self.attn = Attention(width, width // HEAD_WIDTH, qk_norm=True)
        self.mlp = GeluMlp(width, 4.0)

    def forward(self, x: Tensor, rotation: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn(self.attn_norm(x), rotation, mask)
        return x + self.mlp(self.mlp_norm(x))


class ByteTransformer(nn.Module):
    """A token for every four bytes of a text, and the mean of the tokens.

    ``length`` is in bytes, ``width`` a multiple of 32. Positions are rotations (RoPE): no parameter
    depends on the length.

    Source: Clark et al. 2022 (CANINE), arXiv:2103.06874, for a token for four characters.
    """

    def __init__(self, width: int, depth: int, length: int):
        super().__init__()
        if width % HEAD_WIDTH or width <= 0:
            raise ValueError(f"byte_width must be a multiple of {HEAD_WIDTH}, got {width}")
        self.embedding = nn.Embedding(257, width)
        self.merge = nn.Linear(BYTES_A_TOKEN * width, width)
        self.blocks = nn.ModuleList(ByteBlock(width) for _ in range(depth))
        self.norm = RMSNorm(width)
        rotation = line_rotation_table(HEAD_WIDTH, -(-length // BYTES_A_TOKEN))
        self.register_buffer("rotation", rotation, persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reads bytes plus one, 0 behind the text's end, int64 (B, L).

        Gives tokens (B, N, width), N a quarter of L, the mask of the text, bool (B, N), and the
        mean (B, width); all zeros without a text.
        """
        ids = F.pad(ids, (0, -ids.shape[1] % BYTES_A_TOKEN))
        mask = ids[:, ::BYTES_A_TOKEN] > 0
        # Where there is nothing to attend to, all of it is: what comes of that is masked below.
        attended = mask | ~mask.any(1, keepdim=True)
        x = self.merge(self.embedding(ids).unflatten(1, (-1, BYTES_A_TOKEN)).flatten(2))
        for block in self.blocks:
            x = block(x, self.rotation, attended)
        tokens, mean = masked_mean(self.norm(x), mask)
        return tokens, mask, mean


class TextEmbedder(nn.Module):
    """What the blocks read of a text: tokens behind a learned first one, and a vector.

    The vector starts as zeros, so that a pretrained model starts unchanged.
    """

    def __init__(self, text_width: int, pooled_width: int, width: int):
        super().__init__()
        self.register = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.proj = nn.Sequential(RMSNorm(text_width), nn.Linear(text_width, width))
        mlp = (nn.Linear(pooled_width, width), nn.SiLU(), nn.Linear(width, width))
        self.pooled = nn.Sequential(RMSNorm(pooled_width), *mlp)
        for layer in (self.proj[1], self.pooled[1]):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.pooled[3].weight)
        nn.init.zeros_(self.pooled[3].bias)

    def forward(
        self, tokens: Tensor, mask: Tensor, pooled: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, L, text_width), their mask, bool (B, L), and (B, pooled_width) to the blocks'.

        Those are tokens (B, 1 + L, width), their mask, bool (B, 1 + L), and the vector, (B, width).
        """
        # The first token is always there: an empty text still has something to attend to.
        dtype = self.proj[1].weight.dtype
        tokens = self.proj(tokens.to(dtype))
        register = self.register.expand(len(tokens), -1, -1).to(tokens.dtype)
        mask = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
        return torch.cat([register, tokens], dim=1), mask, self.pooled(pooled.to(dtype))


class KeysValues(nn.Module):
    """Keys and values, (B, heads, L, d), of a text (B, L, width), for queries from elsewhere."""

    def __init__(self, width: int, num_heads: int, qk_norm: bool):
        super().__init__()
        self.num_heads = num_heads
        self.kv = nn.Linear(width, 2 * width)
        self.k_norm = RMSNorm(width // num_heads) if qk_norm else nn.Identity()

    def forward(self, text: Tensor) -> tuple[Tensor, Tensor]:
        k, v = split_heads(self.kv(text), 2, self.num_heads)
        return self.k_norm(k), v


class CrossAttention(nn.Module):
    """Tokens (B, N, width) attend to those of a text; gives zeros at first."""

    def __init__(self, width: int, num_heads: int, qk_norm: bool):
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(width, width)
        self.q_norm = RMSNorm(width // num_heads) if qk_norm else nn.Identity()
        self.text = KeysValues(width, num_heads, qk_norm)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        (q,) = split_heads(self.q(x), 1, self.num_heads)
        k, v = self.text(text)
        h = attend(self.q_norm(q), k, v, mask)
        return self.proj(h.transpose(1, 2).flatten(2))


class CrossTextBlock(TransformerBlock):
    """A block that attends to the text between attention and MLP."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        width, num_heads, *_, qk_norm = sizes
        self.text_attn = CrossAttention(width, num_heads, qk_norm)

    def forward(
        self, x: Tensor, c: Tensor, rotation: Tensor | None, text: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        (shift, scale, gate), of_mlp = self.modulations(c)
        x = x + gate * self.attn(modulate(self.norm(x), shift, scale), rotation)
        x = x + self.text_attn(self.norm(x), text, mask)
        return self.feed_forward(x, *of_mlp), text


class JointTextBlock(TransformerBlock):
    """A block with a second stream, of the text: each attends to both."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.text_stream = TransformerBlock(*sizes)

    def forward(
        self, x: Tensor, c: Tensor, rotation: Tensor | None, text: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens (B, N, width), text (B, L, width) and its mask to tokens and text."""
        stream = self.text_stream
        (shift, scale, gate), of_mlp = self.modulations(c)
        (text_shift, text_scale, text_gate), of_text_mlp = stream.modulations(c)
        # Queries, keys and values of both streams, one behind the other.
        image_qkv = self.attn.project(modulate(self.norm(x), shift, scale), rotation)
        text_qkv = stream.attn.project(modulate(stream.norm(text), text_shift, text_scale))
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(image_qkv, text_qkv, strict=True))
        h, text_h = attend(q, k, v, _with_image(mask, x)).split([x.shape[1], text.shape[1]], 2)
        # From here on each stream is by itself.
        x = self.feed_forward(x + gate * self.attn.join(h), *of_mlp)
        text = text + text_gate * stream.attn.join(text_h)
        return x, stream.feed_forward(text, *of_text_mlp)


class LastJointTextBlock(TransformerBlock):
    """The last of the joint blocks: its text is only attended to, and goes nowhere after that."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        width, num_heads, *_, qk_norm = sizes
        self.text_attn = KeysValues(width, num_heads, qk_norm)
        self.text_adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(
        self, x: Tensor, c: Tensor, rotation: Tensor | None, text: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        (shift, scale, gate), of_mlp = self.modulations(c)
        q, k, v = self.attn.project(modulate(self.norm(x), shift, scale), rotation)
        shift, scale = self.text_adaLN_modulation(c)[:, None].chunk(2, dim=-1)
        text_k, text_v = self.text_attn(modulate(self.norm(text), shift, scale))
        k, v = torch.cat([k, text_k], dim=2), torch.cat([v, text_v], dim=2)
        h = attend(q, k, v, _with_image(mask, x))
        return self.feed_forward(x + gate * self.attn.join(h), *of_mlp), text


def text_blocks(kind: str, depth: int, *sizes) -> list[TransformerBlock]:
    """``depth`` blocks that read a text by ``cross`` or ``joint`` attention."""
    if kind == "cross":
        return [CrossTextBlock(*sizes) for _ in range(depth)]
    inner = [JointTextBlock(*sizes) for _ in range(depth - 1)]
    return inner + [LastJointTextBlock(*sizes) for _ in range(min(depth, 1))]


def _with_image(mask: Tensor, x: Tensor) -> Tensor:
    """The text's mask (B, L) behind one of all the image's tokens: (B, N + L)."""
    return torch.cat([mask.new_ones(x.shape[:2]), mask], dim=1)
