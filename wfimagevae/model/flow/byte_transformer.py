"""A small transformer that reads a text's bytes, and is trained with the network it is part of."""

import torch.nn.functional as F
from torch import Tensor, nn

from wfimagevae.model.flow.embed import line_rotation_table, masked_mean
from wfimagevae.model.flow.normalize import RMSNorm
from wfimagevae.model.flow.transformer_blocks import Attention, GeluMlp

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
