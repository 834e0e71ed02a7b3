"""Attention of a few tokens, by the kernel that is fast on the device."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

_FEW_TOKENS = 1024


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """`scaled_dot_product_attention` of queries, keys and values, (B, heads, N, d).

    The mask, bool (B, keys), says which keys count; each sample has at least one.
    """
    if mask is not None:
        mask = mask[:, None, None, :]  # (B, 1, 1, keys)
    # The fused CPU kernel takes two to ten times as long in backward, in bfloat16.
    is_slow = q.device.type == "cpu" and q.dtype != torch.float32 and k.shape[-2] <= _FEW_TOKENS
    if is_slow and not torch.compiler.is_compiling():
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
