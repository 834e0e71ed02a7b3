"""The tokens of a text without what stands behind its end, and their mean."""

from torch import Tensor


def masked_mean(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens with zeros outside the mask, and the mean of those inside; of none it is zero.

    Args:
        tokens: (B, L, D).
        mask: bool (B, L).

    Returns:
        (B, L, D) and (B, D).
    """
    tokens = tokens.masked_fill(~mask[..., None], 0)
    return tokens, tokens.sum(1) / mask.sum(1, keepdim=True).clamp_min(1)
