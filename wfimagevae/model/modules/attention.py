"""Self-attention over all positions of a feature map."""

import torch.nn.functional as F
from torch import Tensor, nn

from wfimagevae.model.modules.normalize import build_norm
from wfimagevae.model.modules.spade import Spade


class AttnBlock2D(nn.Module):
    """One head of self-attention over all H W positions, plus the input.

    With ``latent_dim``, a latent of so many channels modulates the norm.
    """

    def __init__(self, channels: int, norm_type: str = "layernorm", latent_dim: int = 0):
        super().__init__()
        self.norm = build_norm(norm_type, channels)
        self.spade = Spade(latent_dim, channels) if latent_dim else None
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, latent: Tensor | None = None) -> Tensor:
        h = self.norm(x)
        if self.spade is not None:
            h = self.spade(h, latent)
        # One head over H W tokens, and back.
        q, k, v = (_to_tokens(project(h)) for project in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)  # (B, 1, H W, C)
        h = h.reshape(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)  # (B, C, H, W)
        return self.proj_out(h).add_(x)


def _to_tokens(x: Tensor) -> Tensor:
    """One head of tokens, (B, 1, H W, C), from (B, C, H, W); a view of channels_last memory."""
    # Contiguous, because with a strided last dimension the CPU kernel falls back to the one
    # that holds the whole matrix.
    return x.permute(0, 2, 3, 1).flatten(1, 2).unsqueeze(1).contiguous()
