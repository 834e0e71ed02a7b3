"""Norms with float32 statistics that also have forward-mode derivatives when compiled.

Dynamo cannot trace PyTorch's fused norms under `torch.func.jvp`, so compiled code gets the plain
formulas, which Inductor fuses; eager code gets the fused kernels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6


def layer_norm(x: Tensor) -> Tensor:
    """LayerNorm over the last dimension, without parameters, in the type of ``x``."""
    if torch.compiler.is_compiling():
        return standardize(at_least_float32(x), (-1,)).to(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        return F.layer_norm(x, x.shape[-1:], eps=EPS)


def rms_norm(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """``x / rms(x)``, times the weight (D,) if there is one, over the last dimension.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    weight = None if weight is None else weight.to(x.dtype)
    if torch.compiler.is_compiling():
        h = at_least_float32(x)
        h = (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + EPS)).to(x.dtype)
        return h if weight is None else h * weight
    with torch.autocast(x.device.type, enabled=False):
        return F.rms_norm(x, x.shape[-1:], weight, EPS)


TOKEN_NORMS = {"layernorm": layer_norm, "rmsnorm": rms_norm}


class RMSNorm(nn.Module):
    """`rms_norm` with a weight for each of ``width`` values."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def standardize(x: Tensor, dims: tuple[int, ...], eps: float = EPS) -> Tensor:
    x = x - x.mean(dims, keepdim=True)
    return x * torch.rsqrt(x.square().mean(dims, keepdim=True) + eps)
