"""Norms with float32 statistics that also have forward-mode derivatives when compiled.

Dynamo cannot trace PyTorch's fused norms under `torch.func.jvp`, so compiled code gets the plain
formulas, which Inductor fuses; eager code gets the fused kernels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual

EPS = 1e-6


def layer_norm(x: Tensor) -> Tensor:
    """LayerNorm over the last dimension, without parameters, in the type of ``x``."""
    if torch.compiler.is_compiling():
        return _standardize(_at_least_float32(x), (-1,)).to(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        return F.layer_norm(x, x.shape[-1:], eps=EPS)


def rms_norm(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """``x / rms(x)``, times the weight (D,) if there is one, over the last dimension.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    weight = None if weight is None else weight.to(x.dtype)
    if torch.compiler.is_compiling():
        h = _at_least_float32(x)
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
            h = _at_least_float32(x).unflatten(1, (self.num_groups, -1))  # (B, groups, n, H, W)
            h = _standardize(h, (2, 3, 4), self.eps).flatten(1, 2)
            return (h * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)).to(x.dtype)
        if x.device.type != "cpu":  # the CPU's kernel takes bfloat16 with float32 parameters
            weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return F.group_norm(x, self.num_groups, weight, bias, self.eps)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _standardize(x: Tensor, dims: tuple[int, ...], eps: float = EPS) -> Tensor:
    x = x - x.mean(dims, keepdim=True)
    return x * torch.rsqrt(x.square().mean(dims, keepdim=True) + eps)
